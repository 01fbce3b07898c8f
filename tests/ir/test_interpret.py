"""The interpreter: the oracle itself must agree with the plain module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves

from sarc.ir.interpret import interpret
from sarc.ir.parse import parse_program
from tests.ir.stages import MODELS, compiled, run_step

# Sums of up to 40 float64 terms in another order: a few hundred units in the last place at most.
TOLERANCE = 1e-12


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if not model.draws])
def test_an_interpreted_step_is_the_modules_own(name: str) -> None:
    made = compiled(name)
    results, grads = run_step(made, made.programs)
    module = copy.deepcopy(made.module)
    # The compiled call that made the programs has moved the running statistics already.
    eager = tree_leaves(module(*(made.values[k] for k in MODELS[name].inputs)))
    for k, expected in enumerate(eager):
        assert torch.allclose(results[f"result {k}"], expected, rtol=0, atol=TOLERANCE)
    torch.autograd.backward(eager, [torch.ones_like(t) for t in eager])
    for key, parameter in module.named_parameters():
        got = grads.pop(f"param {key}", torch.zeros_like(parameter))
        expected = torch.zeros_like(got) if parameter.grad is None else parameter.grad
        assert torch.allclose(got, expected, rtol=0, atol=TOLERANCE * max(1.0, float(expected.abs().max()))), key
    assert not grads
    for key, buffer in module.named_buffers():
        if f"buffer {key}" in results:
            assert torch.allclose(results[f"buffer {key}"], buffer, rtol=0, atol=TOLERANCE), key


def test_sizes_are_learnt_from_the_values_and_filters_count_their_rows() -> None:
    program = parse_program(
        """program step
space N = nodes
space S0 = filter(N, %mask)
%x: f64[N, 2] = input arg x
%mask: bool[N] = input arg mask
%picked: i64[S0] = sarc.select_rows(%mask)
%rows: f64[S0, 2] = sarc.gather(%x, %picked, 0)
%total: f64[2] = aten.sum.dim_IntList(%rows, [0])
%mean: f64[2] = aten.div.Tensor(%total, |S0|)
%share: f64[2] = aten.mul.Tensor(%mean, |1/N|)
return result 0 = %mean
return result 1 = %share
"""
    )
    x, mask = torch.rand(5, 2, dtype=torch.float64), torch.tensor([True, False, True, True, False])
    sizes: dict[str, int] = {}
    mean, share = interpret(program, [x, mask], sizes)
    assert torch.allclose(mean, x[mask].mean(0))
    assert torch.allclose(share, mean / 5)
    assert sizes == {"N": 5, "S0": 3}


def test_rows_with_keys_of_their_own_draw_by_key() -> None:
    program = parse_program(
        """program step
space N = nodes
%x: f32[N, 3] = input arg x
%rng: i64[2] = input rng rng
%draw: f32[N, 3] = sarc.uniform(%rng, [|N|, 3], 2)
return result 0 = %draw
"""
    )
    rng = torch.tensor([11, 4])
    (whole,) = interpret(program, [torch.zeros(6, 3), rng])
    rows = torch.tensor([4, 1, 5])
    (part,) = interpret(program, [torch.zeros(3, 3), rng], row_keys={"N": rows})
    assert torch.equal(part, whole[rows])
    (later,) = interpret(program, [torch.zeros(6, 3), torch.tensor([11, 5])])
    assert not torch.equal(later, whole)
