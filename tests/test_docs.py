"""Pages made by scripts are up to date, and links between pages lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))


@pytest.mark.parametrize("script", ["ops_table", "print_stages"])
def test_the_page_is_what_its_script_writes(script: str) -> None:
    spec = importlib.util.spec_from_file_location(f"scripts_{script}", REPOSITORY / "scripts" / f"{script}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    # By name, as inspect looks up the source of a class.
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    assert made.PATH.read_text(encoding="utf-8") == made.document(), f"run python scripts/{script}.py"


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_design_names_files_that_exist() -> None:
    text = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:sarc|tests|scripts)/[\w/.]+)`", text):
        assert (REPOSITORY / name).exists(), f"docs/design.md names {name}"
