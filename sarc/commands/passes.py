"""`sarc passes`: what the passes do, from their docstrings."""

from __future__ import annotations

from sarc.commands.find_passes import Pass, find_pass, find_passes
from sarc.commands.output import as_records, write_code, write_json, write_table

_HEAD = ("pass", "on", "does")


def passes(name: str | None, as_json: bool) -> None:
    """Print the list of passes, or all that is known of one."""
    if name is not None:
        found = find_pass(name)
        if as_json:
            write_json(vars(found))
        else:
            write_code(page(found))
        return
    rows = [(p.name, p.level, p.summary.rstrip(".")) for p in find_passes()]
    if as_json:
        write_json(as_records(_HEAD, rows))
    else:
        write_table("passes, in the order of the pipeline", _HEAD, rows, "sarc passes NAME prints one with its example")


def page(found: Pass) -> str:
    """A pass as a text: purpose, example, needs and gives."""
    parts = [f"{found.name} (on {found.level} programs; {found.module})", found.purpose]
    if found.before:
        parts += [f"Before:\n{_indented(found.before)}", f"After:\n{_indented(found.after)}"]
    return "\n\n".join([*parts, *([found.rest] if found.rest else [])]) + "\n"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())
