"""The Before and After of every pass's docstring are real: the pass is run on Before and must give After."""

from __future__ import annotations

import importlib
import re
import textwrap
from collections.abc import Callable

import pytest
import torch
from torch import nn

from sarc.codegen.kernels import has_kernel
from sarc.codegen.overwrite import overwritable
from sarc.frontends.capture import Argument, capture
from sarc.frontends.placeholders import graph_spaces, input_names, placeholder_types
from sarc.ir.parse import parse_program
from sarc.ir.placement import Ends, RowSet, Site
from sarc.ir.print import format_node, format_program
from sarc.ir.program import Input, Program, remove_dead
from sarc.ir.space import Rows, ValueType
from sarc.ir.verify import verify
from sarc.partition.columns import ColumnMap
from sarc.passes.base import merge_common
from sarc.passes.forward.bind import bind
from sarc.passes.forward.bind_data import bind_data
from sarc.passes.forward.canonicalise import Canonicalise
from sarc.passes.forward.compute_halos import ComputeHalos
from sarc.passes.forward.factor_folds import FactorFolds
from sarc.passes.forward.hoist_rowwise import HoistRowwise
from sarc.passes.forward.order_dense import OrderDense
from sarc.passes.forward.raise_graph_ops import RaiseGraphOps
from sarc.passes.forward.split_attention import SplitAttention
from sarc.passes.joint.differentiate import differentiate
from sarc.passes.joint.factor_gradients import FactorGradients
from sarc.passes.joint.fold_products import FoldProducts
from sarc.passes.joint.fuse_edge_programs import FuseEdgePrograms
from sarc.passes.joint.rematerialise import Rematerialise
from sarc.passes.joint.simplify import Simplify
from sarc.passes.joint.split import split
from sarc.passes.partitioned.add_products import AddProducts
from sarc.passes.partitioned.build_schedule import build_schedule
from sarc.passes.partitioned.exchange_whole import ExchangeWhole
from sarc.passes.partitioned.fuse_rows import FuseRows
from sarc.passes.partitioned.merge_fold_states import MergeFoldStates
from sarc.passes.partitioned.merge_row_phases import MergeRowPhases
from sarc.passes.partitioned.narrow_fetches import NarrowFetches
from sarc.passes.partitioned.narrow_gathers import NarrowGathers
from sarc.passes.partitioned.narrow_products import NarrowProducts
from sarc.passes.partitioned.order_lifetimes import OrderLifetimes
from sarc.passes.partitioned.partition_program import PartitionProgram
from sarc.passes.partitioned.place_edge_programs import PlaceEdgePrograms
from sarc.passes.partitioned.repeat_rows import RepeatRows
from sarc.passes.partitioned.reuse_storage import ReuseStorage

ARGUMENTS = [
    Argument("x", ValueType((Rows("N"), 4), torch.float32)),
    Argument("src", ValueType((Rows("E"),), torch.int64)),
    Argument("dst", ValueType((Rows("E"),), torch.int64)),
]


def captured(code: str):
    """The capture of a forward that reads x f32[N, 4], src and dst i64[E]."""
    names: dict[str, Callable] = {}
    body = compile(f"def forward(self, x, src, dst):\n{textwrap.indent(code, '    ')}", "model.py", "exec")
    exec(body, {"torch": torch}, names)
    module = type("Model", (nn.Module,), names)()
    return capture(module, ARGUMENTS, lambda m, tensors, _: m(*tensors), graph_spaces())


def canonicalise(code: str) -> str:
    found = captured(code)
    graph = Canonicalise(found.spaces, found.symbols).run(found.graph, input_names(found.inputs))
    calls = [format_node(n) for n in graph.nodes if n.op == "call_function"]
    # Not typed yet: that is the next pass's work.
    return "\n".join(line.replace(": ?", "") for line in calls) + "\n"


def raise_graph_ops(code: str) -> str:
    found = captured(code)
    graph = Canonicalise(found.spaces, found.symbols).run(found.graph, input_names(found.inputs))
    raised = RaiseGraphOps(found.spaces, placeholder_types(graph, found, ARGUMENTS)).run(graph)
    verify(Program(raised, found.spaces, found.inputs, found.outputs, "raised"))
    return "".join(format_node(n) + "\n" for n in raised.nodes if n.op == "call_function")


def cleaned(program: Program) -> Program:
    own = program.copy()
    merge_common(own.graph)
    remove_dead(own.graph)
    return own


def parameters(program: Program) -> frozenset:
    return frozenset(entry for entry in program.inputs if entry.kind == "param")


# Module -> what is run on its Before: Python for the two passes on captured graphs, a program for the others.
ON_CODE = {
    "sarc.passes.forward.canonicalise": canonicalise,
    "sarc.passes.forward.raise_graph_ops": raise_graph_ops,
}
ROW_SETS = (RowSet("E_src", Site(Ends("E", Input("bound", "src"), Input("bound", "dst"), "N", "N"), "src")),)
ON_PROGRAM: dict[str, Callable[[Program], tuple[Program, ...]]] = {
    "sarc.passes.base": lambda p: (cleaned(p),),
    "sarc.passes.forward.split_attention": lambda p: (SplitAttention().run(p),),
    "sarc.passes.forward.hoist_rowwise": lambda p: (HoistRowwise().run(p),),
    "sarc.passes.forward.factor_folds": lambda p: (FactorFolds().run(p),),
    "sarc.passes.forward.order_dense": lambda p: (OrderDense().run(p),),
    "sarc.passes.forward.bind": bind,
    "sarc.passes.forward.compute_halos": lambda p: (ComputeHalos(parameters(p), {"src"}).run(p),),
    "sarc.passes.forward.bind_data": lambda p: bind_data(p, parameters(p)),  # type: ignore[dict-item]
    "sarc.passes.joint.differentiate": lambda p: (differentiate(p, parameters(p)),),
    "sarc.passes.joint.simplify": lambda p: (Simplify().run(p),),
    "sarc.passes.joint.factor_gradients": lambda p: (FactorGradients().run(p),),
    "sarc.passes.joint.fold_products": lambda p: (FoldProducts().run(p),),
    "sarc.passes.joint.rematerialise": lambda p: (Rematerialise().run(p),),
    "sarc.passes.joint.split": split,
    "sarc.passes.joint.fuse_edge_programs": lambda p: (FuseEdgePrograms().run(p),),
    "sarc.passes.partitioned.place_edge_programs": lambda p: (PlaceEdgePrograms({"edge_call": ROW_SETS}).run(p),),
    "sarc.passes.partitioned.partition_program": lambda p: (PartitionProgram(frozenset({"src"})).run(p),),
    "sarc.passes.partitioned.exchange_whole": lambda p: (ExchangeWhole().run(p),),
    "sarc.passes.partitioned.merge_fold_states": lambda p: (MergeFoldStates().run(p),),
    "sarc.passes.partitioned.narrow_fetches": lambda p: (NarrowFetches().run(p),),
    "sarc.passes.partitioned.repeat_rows": lambda p: (RepeatRows().run(p),),
    "sarc.passes.partitioned.add_products": lambda p: (AddProducts().run(p),),
    "sarc.passes.partitioned.narrow_gathers": lambda p: (NarrowGathers(has_kernel).run(p),),
    "sarc.passes.partitioned.narrow_products": lambda p: (NarrowProducts().run(p),),
    "sarc.passes.partitioned.merge_row_phases": lambda p: (MergeRowPhases(has_kernel).run(p),),
    "sarc.passes.partitioned.fuse_rows": lambda p: (FuseRows(has_kernel).run(p),),
    "sarc.passes.partitioned.order_lifetimes": lambda p: (OrderLifetimes().run(p),),
    "sarc.passes.partitioned.reuse_storage": lambda p: (ReuseStorage(overwritable).run(p),),
}
# Lines of an example at most; a softmax over parts is two edge programs and four exchanges.
LINES = {"sarc.passes.partitioned.merge_fold_states": 25}
SCHEDULE = "sarc.passes.partitioned.build_schedule"


def run(module: str, before: str) -> str:
    """What the pass of `module` makes of the text `before`."""
    if module in ON_CODE:
        return ON_CODE[module](before)
    program = verify(parse_program(before))
    if module == SCHEDULE:
        # Part 0 of 2: it needs two rows of part 1, which needs two of its own.
        column = ColumnMap(True, None, (), ((), (2,)), ((), (torch.tensor([0, 3]),)), (0, 1))
        return f"{build_schedule(program, 0, 2, {('src', 'N'): column}, prefetch=0)}\n"
    made = ON_PROGRAM[module](program)
    assert format_program(program) == before, "the pass altered its input"
    return "".join(format_program(verify(p)) for p in made)


@pytest.mark.parametrize("module", [*ON_CODE, *ON_PROGRAM, SCHEDULE])
def test_the_docstring_tells_the_truth(module: str) -> None:
    doc = importlib.import_module(module).__doc__ or ""
    found = re.search(r"\nBefore:\n((?:    .*\n)+)After:\n((?:    .*\n)+)\n?Needs (?:.|\n)*[Dd]oes nothing\b", doc)
    assert found, f"{module}: expected a purpose, Before, After, Needs ... and when it does nothing"
    before, after = (textwrap.dedent(part) for part in found.groups())
    assert run(module, before) == after
    for text in (before, *re.split(r"(?=^program )", after, flags=re.MULTILINE)):
        lines = [line for line in text.splitlines() if not line.startswith(("space ", "schedule "))]
        assert len(lines) <= LINES.get(module, 12)
