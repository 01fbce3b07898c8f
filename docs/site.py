"""What mkdocs adds to the pages of this folder: one page a pass, from its docstring, and the top folder's files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

REPOSITORY = Path(__file__).resolve().parents[1]
TOP = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# What top pages link to that is no page of the site is shown as text.
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """Enter the passes into the navigation."""
    from sarc.commands.find_passes import find_passes

    pages = [{p.name: f"passes/{p.name}.md"} for p in find_passes()]
    config.nav = [{"Passes": pages} if entry == "PASSES" else entry for entry in config.nav]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from sarc.commands.find_passes import find_passes

    for found in find_passes():
        files.append(File.generated(config, f"passes/{found.name}.md", content=pass_page(found)))
    for name, page in TOP.items():
        files.append(File.generated(config, page, content=(REPOSITORY / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as GitHub reads them become links of the site."""
    from_top = page.file.src_uri in TOP.values()

    def link(found: re.Match[str]) -> str:
        text, path, anchor = found[1], found[2], found[3] or ""
        name = path.removeprefix("../")
        if name in TOP:
            return f"[{text}]({TOP[name]}{anchor})"
        if from_top:
            page = name.removeprefix("docs/")
            return f"[{text}]({page}{anchor})" if files.get_file_from_path(page) else f"`{name}`"
        return found[0]

    return _LINK.sub(link, markdown)


def pass_page(found: Any) -> str:
    """A pass's docstring as a page."""
    code = "python" if found.before and not found.before.startswith("program") else "text"
    parts = [f"# {found.name}", f"On {found.level} programs; `{found.module}`.", found.purpose]
    if found.before:
        parts += [
            f"## Before\n\n```{code}\n{found.before}\n```",
            f"## After\n\n```text\n{found.after}\n```",
            found.rest,
        ]
    return "\n\n".join(parts) + "\n"
