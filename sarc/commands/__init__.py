"""What the commands of `sarc` do; `sarc/cli.py` says how they are called."""
