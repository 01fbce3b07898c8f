"""Programs as Python: what is printed runs, and computes what the interpreter does."""

from __future__ import annotations

import ast
import inspect

import pytest
import torch

from sarc.ir.interpret import interpret
from sarc.ir.print_python import format_python
from sarc.ir.program import Input
from sarc.ir.space import Rows
from tests.ir.stages import MODELS, TRAINED, E, N, compiled


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_is_python(name: str) -> None:
    for stage in TRAINED:
        ast.parse(format_python(compiled(name).programs[stage]))


@pytest.mark.parametrize("name", ["gcn-weighted", "attention", "sage-max", "edge-conv", "transformer", "no-graph"])
def test_the_forward_computes_what_the_interpreter_does(name: str) -> None:
    made = compiled(name)
    known = {
        **{Input("param", k): v.detach() for k, v in made.module.named_parameters()},
        **{Input("buffer", k): v.clone() for k, v in made.module.named_buffers()},
        **{Input("arg", k): v for k, v in made.values.items()},
        **{Input("constant", k): v for k, v in made.constants.items()},
        Input("rows", "N"): torch.empty(N, dtype=torch.uint8),
        Input("rows", "E"): torch.empty(E, dtype=torch.uint8),
    }
    structure = made.programs["structure"]
    sizes = {"N": N, "E": E}
    bound = interpret(structure, [known[entry] for entry in structure.inputs], sizes)
    known |= {Input("bound", o.name): v for o, v in zip(structure.outputs, bound, strict=True)}
    for node, value in zip(structure.returned, bound, strict=True):
        sizes |= {d.space: n for d, n in zip(node.meta["type"].dims, value.shape, strict=True) if isinstance(d, Rows)}
    if "data" in made.programs:
        data = made.programs["data"]
        found = interpret(data, [known[entry] for entry in data.inputs], dict(sizes))
        known |= {Input("data", o.name): v for o, v in zip(data.outputs, found, strict=True)}
    for stage in ("forward", "partitioned forward"):
        program = made.programs[stage]
        namespace: dict = {}
        exec(format_python(program), namespace)
        given = [known[entry] for entry in program.inputs]
        asked = inspect.signature(namespace["forward"]).parameters
        expected = interpret(program, given, {"N": N, "E": E})
        made_by_python = namespace["forward"](*given, **{k: sizes[k] for k in asked.keys() & sizes.keys()})
        for ours, theirs in zip(made_by_python, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
