"""The programs of three models at every stage, as files to read and to review changes by.

`SARC_UPDATE_GOLDEN=1 python -m pytest tests/golden` writes them anew. Source lines are left out: they are those of an
installed library.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sarc.ir.parse import parse_program
from sarc.ir.print import format_program
from tests.ir.stages import TRAINED, compiled

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("stage", TRAINED)
@pytest.mark.parametrize("name", ["gcn", "gat", "sage-max"])
def test_the_program_is_the_reviewed_one(name: str, stage: str) -> None:
    text = re.sub(r"   # .*", "", compiled(name).texts[stage])
    path = FOLDER / f"{name}.{stage.replace(' ', '-')}.sarc"
    if os.environ.get("SARC_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    expected = path.read_text(encoding="utf-8")
    assert text == expected, f"{path.name} changed: review the difference; SARC_UPDATE_GOLDEN=1 writes it anew"
    assert format_program(parse_program(expected)) == expected
