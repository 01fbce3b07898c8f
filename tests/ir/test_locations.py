"""Every value of every stage says which line of the user's forward, or of the library's layer, it comes from."""

from __future__ import annotations

import inspect
import re

import pytest

from sarc.ir.edge_program import edge_call
from tests.ir import stages
from tests.ir.stages import MODELS, compiled

LIBRARY = re.compile(r"torch_geometric/[\w/]+\.py:\d+")


def lines_of(cls: type) -> set[str]:
    """The lines of a class of stages.py as they are printed."""
    source, first = inspect.getsourcelines(cls)
    return {f"tests/ir/stages.py:{line}" for line in range(first, first + len(source))}


@pytest.mark.parametrize("name", MODELS)
def test_every_call_has_a_line(name: str) -> None:
    made = compiled(name)
    own = {
        line for cls in (stages.Attention, stages.MaskedLoss, stages.MLP) for line in lines_of(cls)
    }  # fmt: skip
    for stage, program in made.programs.items():
        graphs = [program.graph, *(n.args[0].body for n in program.graph.nodes if n.target is edge_call)]
        for node in (n for graph in graphs for n in graph.nodes if n.op == "call_function"):
            loc = node.meta.get("loc", "")
            assert loc in own or LIBRARY.fullmatch(loc), f"{stage}: %{node.name} of {node.target} at {loc!r}"
        for node in program.graph.nodes:
            if node.target is edge_call:
                assert node.args[0].loc in own or LIBRARY.fullmatch(node.args[0].loc)


def test_a_fold_of_the_users_own_names_its_line() -> None:
    made = compiled("attention")
    source, first = inspect.getsourcelines(stages.Attention.forward)
    line = next(first + k for k, text in enumerate(source) if "amax" in text)
    assert f"'amax')   # tests/ir/stages.py:{line}\n" in made.texts["raised"]
    assert re.search(rf"edges @edges\d+ over E.*# tests/ir/stages.py:{line}\n", made.texts["forward"])
