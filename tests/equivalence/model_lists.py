"""All models of the equivalence tests, and the few that stand for the rest."""

from __future__ import annotations

from importlib.util import find_spec

from tests.equivalence.case import Case
from tests.equivalence.plain_models import PLAIN
from tests.equivalence.pyg_models import PYG
from tests.equivalence.refused_models import REFUSED, Refused

if find_spec("dgl") is None:  # no wheels for Python 3.12 and later
    DGL: tuple[Case, ...] = ()
else:
    from tests.equivalence.dgl_models import DGL

__all__ = ["DGL", "PLAIN", "PYG", "REFUSED", "Refused", "CASES", "case_named"]

CASES: dict[str, tuple[Case, ...]] = {"plain torch": PLAIN, "PyTorch Geometric": PYG, "DGL": DGL}


def case_named(name: str) -> Case:
    return next(c for group in CASES.values() for c in group if c.name == name)
