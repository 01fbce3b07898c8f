"""`python -m sarc`: the same as `sarc`."""

from sarc.cli import main

if __name__ == "__main__":
    main(prog_name="sarc")
