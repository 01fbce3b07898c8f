"""What holds of every pass on every model: the input is not altered, nothing to do gives the same object, and the
program's numbers stay the same to the last step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sarc.codegen.kernels import has_kernel
from sarc.codegen.overwrite import overwritable
from sarc.ir.interpret import interpret
from sarc.ir.parse import parse_program
from sarc.ir.print import format_program
from sarc.ir.program import Program
from sarc.ir.verify import verify
from sarc.passes.base import merge_common
from sarc.passes.forward.bind import bind
from sarc.passes.forward.factor_folds import FactorFolds
from sarc.passes.forward.hoist_rowwise import HoistRowwise
from sarc.passes.forward.order_dense import OrderDense
from sarc.passes.forward.split_attention import SplitAttention
from sarc.passes.joint.differentiate import differentiate
from sarc.passes.joint.fuse_edge_programs import FuseEdgePrograms
from sarc.passes.joint.rematerialise import Limits, Rematerialise
from sarc.passes.joint.simplify import Simplify
from sarc.passes.joint.split import split
from sarc.passes.partitioned.add_products import AddProducts
from sarc.passes.partitioned.fuse_rows import FuseRows
from sarc.passes.partitioned.merge_row_phases import MergeRowPhases
from sarc.passes.partitioned.narrow_gathers import NarrowGathers
from sarc.passes.partitioned.narrow_products import NarrowProducts
from sarc.passes.partitioned.partition_program import PartitionProgram
from sarc.passes.partitioned.repeat_rows import RepeatRows
from sarc.passes.partitioned.reuse_storage import ReuseStorage
from sarc.pipeline import Pipeline
from tests.ir.stages import MODELS, Compiled, E, N, compiled, known_inputs, run_step

# Sums of at most 40 float64 terms in another order.
TOLERANCE = 1e-12

ALGEBRA = (SplitAttention(), HoistRowwise(), FactorFolds(), OrderDense())

ROWS = """program forward
space N = nodes
%x: f32[N, 4] = input arg x
%w: f32[4, 2] = input param w
%h: f32[N, 2] = aten.mm(%x, %w)   # model.py:8
%y: f32[N, 2] = aten.relu(%h)   # model.py:9
return result 0 = %y
"""


def remote_columns(program: Program) -> frozenset[str]:
    return frozenset(column.name for column, _ in Pipeline().columns(program))


def gradient_inputs(made) -> frozenset:
    names = {output.name for output in made.programs["joint"].outputs if output.kind == "grad"}
    return frozenset(entry for entry in made.programs["step"].inputs if str(entry) in names)


@pytest.mark.parametrize("name", ["gat-dropout", "pna", "masked-loss", "gine"])
def test_no_pass_alters_its_input(name: str) -> None:
    made = compiled(name)
    step = parse_program(made.texts["step"])
    raised, joint = parse_program(made.texts["raised"]), parse_program(made.texts["joint"])
    fused = parse_program(made.texts["backward"])
    for rewrite in ALGEBRA:
        rewrite.run(raised)
    bind(raised)
    derivative = differentiate(step, gradient_inputs(made))
    text_of_derivative = format_program(derivative)
    Simplify().run(derivative)
    split(joint)
    before_fusion = split(joint)[1]
    text = format_program(before_fusion)
    FuseEdgePrograms().run(before_fusion)
    PartitionProgram(remote_columns(fused)).run(fused)
    assert format_program(raised) == made.texts["raised"]
    assert format_program(step) == made.texts["step"]
    assert format_program(derivative) == text_of_derivative
    assert format_program(joint) == made.texts["joint"]
    assert format_program(before_fusion) == text
    assert format_program(fused) == made.texts["backward"]


def test_nothing_to_fuse_and_nothing_to_partition_give_the_same_object() -> None:
    rows = parse_program(ROWS)
    for rewrite in ALGEBRA:
        assert rewrite.run(rows) is rows
    assert Simplify().run(rows) is rows
    assert FuseEdgePrograms().run(rows) is rows
    assert PartitionProgram(frozenset({"src"})).run(rows) is rows
    assert MergeRowPhases(has_kernel).run(rows) is rows
    assert FuseRows(has_kernel).run(rows) is rows
    assert RepeatRows().run(rows) is rows
    assert AddProducts().run(rows) is rows
    assert NarrowGathers(has_kernel).run(rows) is rows
    assert NarrowProducts().run(rows) is rows
    assert ReuseStorage(overwritable).run(rows) is rows
    assert merge_common(rows.graph) is False
    assert format_program(rows) == ROWS


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stage", ["forward", "backward"])
def test_a_second_run_changes_nothing(name: str, stage: str) -> None:
    made = compiled(name)
    fused = made.programs[stage]
    assert format_program(FuseEdgePrograms().run(fused)) == made.texts[stage]
    partitioned = PartitionProgram(remote_columns(fused))
    once = partitioned.run(fused)
    assert partitioned.run(once) is once


def values_and_gradients(made: Compiled, program: Program) -> list[Tensor | None]:
    """What a raised program returns, and its gradients with respect to everything real."""
    known = known_inputs(made)
    values = [known[entry].clone() for entry in program.inputs]
    leaves = [v.requires_grad_() for v in values if v.dtype.is_floating_point]
    results = interpret(program, values, {"N": N, "E": E})
    real = [r for r in results if r.requires_grad]
    ones = [torch.ones_like(r) for r in real]
    return [*results, *torch.autograd.grad(real, leaves, ones, allow_unused=True)]


@pytest.mark.parametrize("name", MODELS)
def test_algebra_keeps_values_and_gradients(name: str) -> None:
    made = compiled(name)
    raised = made.programs["raised"]
    expected = values_and_gradients(made, raised)
    for rewrite in ALGEBRA:
        raised = verify(rewrite.run(raised))
        assert rewrite.run(raised) is raised, rewrite.name
        for ours, theirs in zip(values_and_gradients(made, raised), expected, strict=True):
            assert (ours is None) == (theirs is None), rewrite.name
            assert theirs is None or torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE), rewrite.name


def test_the_passes_take_the_same_way_from_text() -> None:
    made = compiled("gat")
    joint = Simplify().run(differentiate(parse_program(made.texts["bound step"]), gradient_inputs(made)))
    noted = parse_program(made.texts["joint"])
    assert format_program(joint) == format_program(Rematerialise(limits=Limits(most_bytes=float("inf"))).run(noted))
    # The notes are in the text: what they say is done after reading it again.
    forward, backward = (FuseEdgePrograms().run(p) for p in split(noted))
    assert format_program(forward) == made.texts["forward"]
    assert format_program(backward) == made.texts["backward"]


def test_a_column_expanded_to_its_own_length_is_that_column() -> None:
    step = compiled("gcn-weighted").programs["step"]
    over_all = [n for n in step.placeholders if str(n.meta["type"]) == "i64[S2]"]
    assert len(over_all) == 2, "source and destination, once each"


@pytest.mark.parametrize("name", MODELS)
def test_partitioned_programs_compute_what_whole_ones_do(name: str) -> None:
    made = compiled(name)
    programs = dict(made.programs)
    for stage in ("forward", "backward"):
        # Every column remote: the most rewriting there can be.
        fused = made.programs[stage]
        programs[f"partitioned {stage}"] = PartitionProgram(remote_columns(fused)).run(fused)
    whole = run_step(made, programs)
    parts = run_step(made, programs, "partitioned forward", "partitioned backward")
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.allclose(value, theirs[key], rtol=0, atol=TOLERANCE), key


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_programs_for_kernels_compute_what_others_do(name: str, tight: bool) -> None:
    """Passes for kernels, where a part holds every edge of its rows; a second run of each changes nothing."""
    made = compiled(name)
    programs = dict(made.programs)
    for stage in ("forward", "backward"):
        program = PartitionProgram(frozenset()).run(made.programs[stage])
        before = format_program(program)
        for rewrite in (
            RepeatRows(), AddProducts(), NarrowGathers(has_kernel), NarrowProducts(),
            MergeRowPhases(has_kernel, tight), FuseRows(has_kernel), ReuseStorage(overwritable),
        ):  # fmt: skip
            rewritten = verify(rewrite.run(program))
            assert format_program(program) == before
            assert rewrite.run(rewritten) is rewritten
            program, before = rewritten, format_program(rewritten)
            assert format_program(parse_program(before)) == before
        programs[f"for kernels {stage}"] = program
    whole = run_step(made, programs)
    merged = run_step(made, programs, "for kernels forward", "for kernels backward")
    for ours, theirs in zip(merged, whole, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.allclose(value, theirs[key], rtol=0, atol=TOLERANCE), key


@pytest.mark.parametrize("name", MODELS)
def test_no_edge_tensor_of_any_width_is_saved(name: str) -> None:
    made = compiled(name)
    forward = made.programs["forward"]
    for node, output in zip(forward.returned, forward.outputs, strict=True):
        if output.kind == "saved":
            assert not any(forward.spaces[s].on_edges for s in node.meta["type"].spaces), output
