"""A compiled module follows its model and its calls.

What a trace bakes in makes another capture; what integer and boolean inputs decide is bound anew when they change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as f
from torch import Tensor, nn

import sarc
from tests.equivalence.case import Cut, F, columns, standard_cut
from tests.equivalence.tolerances import error, tolerance


class Net(nn.Module):
    """Depends on everything a trace can bake in: widths, mode, and plain attributes, nested ones too."""

    def __init__(self):
        super().__init__()
        self.lin, self.slope = nn.Linear(F, 4), 0.1
        self.settings = {"scale": 1.0, "hops": [1, 1]}

    def forward(self, x: Tensor, edge_index: Tensor, bias: Tensor | None = None, twice: bool = False) -> Tensor:
        src, dst = edge_index
        h = self.lin(x)
        for weight in self.settings["hops"]:
            h = h + weight * torch.zeros_like(h).index_add(0, dst, h[src])
        h = f.leaky_relu(h, self.slope) * self.settings["scale"]
        h = h if bias is None else h + bias
        return (2 * h if twice else h) * (1 if self.training else 3)


class Selecting(nn.Module):
    """Reads a mask and a batch vector: structure that is bound once a graph."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(F, 4)

    def forward(self, x: Tensor, edge_index: Tensor, mask: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = edge_index
        h = self.lin(x)
        h = h + torch.zeros_like(h).index_add(0, dst, h[src])
        graphs = int(batch.max()) + 1
        return h[mask].mean(0), torch.zeros(graphs, 4, dtype=x.dtype).index_add(0, batch, h)


@pytest.fixture
def cut() -> Cut:
    return standard_cut(4)


def both(module: nn.Module, cut: Cut) -> tuple[nn.Module, nn.Module]:
    plain = copy.deepcopy(module)
    return plain, sarc.compile(module, cut.partitions())


def assert_equal(actual, expected) -> None:
    pairs = zip(actual, expected, strict=True) if isinstance(expected, tuple) else [(actual, expected)]
    for a, b in pairs:
        assert error(a, b) <= tolerance(b.dtype)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "train mode": lambda m: m.train(),
    "a number": lambda m: setattr(m, "slope", 0.5),
    "inside a dict": lambda m: m.settings.update(scale=2.0),
    "inside a list": lambda m: m.settings["hops"].append(2),
    "a list of another length": lambda m: m.settings.update(hops=[3]),
    "a parameter frozen": lambda m: m.lin.bias.requires_grad_(False),
    "a parameter removed": lambda m: setattr(m.lin, "bias", None),
    "values of a parameter": lambda m: nn.init.ones_(m.lin.weight),
    "another dtype": lambda m: m.float(),
    "back again": lambda m: m.double(),
}


def test_changes_of_the_model(cut: Cut) -> None:
    """One after another on one compiled module, each compared after it; gradients as well."""
    plain, compiled = both(Net().double().eval(), cut)
    for change in CHANGES.values():
        for module in (plain, compiled.model):
            change(module)
            module.zero_grad()
        compiled.train(plain.training)
        x = columns(cut, plain.lin.weight.dtype)["x"]
        expected, actual = plain(x, cut.edge_index), compiled(x, cut.edge_index)
        assert_equal(actual, expected)
        for out in (expected, actual):
            out.pow(2).sum().backward()
        for a, b in zip(compiled.model.parameters(), plain.parameters(), strict=True):
            assert error(a.grad, b.grad) <= tolerance(b.dtype)


def test_changes_of_the_call(cut: Cut) -> None:
    """Shapes, dtypes, arguments left out or given by name, Python arguments."""
    plain, compiled = both(Net().double(), cut)
    x = columns(cut)["x"]
    one, per_row = torch.full((4,), 0.5, dtype=torch.float64), torch.rand(cut.num_nodes, 1, dtype=torch.float64)
    for extra in ({}, {"bias": one}, {"bias": per_row}, {"bias": one.float()}, {"twice": True}, {"bias": None}):
        assert_equal(compiled(x, cut.edge_index, **extra), plain(x, cut.edge_index, **extra))
    assert_equal(compiled(x, cut.edge_index, one, True), plain(x, cut.edge_index, one, True))


def test_grad_mode(cut: Cut) -> None:
    plain, compiled = both(Net().double(), cut)
    x = columns(cut)["x"]
    expected = plain(x, cut.edge_index)
    for guard in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with guard():
            actual = compiled(x, cut.edge_index)
        assert_equal(actual, expected)
        assert actual.requires_grad == (guard is torch.enable_grad)
    inputs = x.clone().requires_grad_()
    compiled(inputs, cut.edge_index).sum().backward()
    assert inputs.grad is not None
    frozen = compiled.requires_grad_(False)
    assert not frozen(x, cut.edge_index).requires_grad
    frozen(inputs, cut.edge_index).sum().backward()


def test_autocast(cut: Cut) -> None:
    """The dtype follows autocast; in bfloat16 two orders of a sum differ as the rounding of its terms does."""
    plain, compiled = both(Net(), cut)
    x = columns(cut, torch.float32)["x"]
    wide = compiled(x, cut.edge_index)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = plain(x, cut.edge_index), compiled(x, cut.edge_index)
    assert actual.dtype == expected.dtype
    exact = plain.double()(x.double(), cut.edge_index)
    assert error(actual.double(), exact) <= 3 * error(expected.double(), exact)
    assert error(actual.float(), wide) > 1e-4, "the result of float32 was reused"
    assert_equal(compiled(x, cut.edge_index), wide)


def test_changes_of_structure(cut: Cut) -> None:
    """A new mask, a mask changed in place, a batch vector with more graphs, and the first tensors once more."""
    plain, compiled = both(Selecting().double(), cut)
    tensors = columns(cut)
    x, mask, batch = tensors["x"], tensors["mask"].clone(), tensors["batch"].clone()

    def check(mask: Tensor, batch: Tensor) -> None:
        assert_equal(compiled(x, cut.edge_index, mask, batch), plain(x, cut.edge_index, mask, batch))

    check(mask, batch)
    check(~mask, batch)
    mask[:5] = True
    check(mask, batch)
    mask.logical_not_()
    check(mask, batch)
    check(mask, batch * 2)
    batch[3:] = 7
    check(mask, batch)
    check(tensors["mask"], tensors["batch"])
    with torch.inference_mode():
        for _ in range(3):  # an inference tensor keeps no version: its memory may be reused for another mask
            check(torch.rand(cut.num_nodes) < 0.5, batch)


def test_alternating_variants_and_masks(cut: Cut) -> None:
    """Training on one mask and evaluating on another, in turn, as every training loop does."""
    plain, compiled = both(Selecting().double(), cut)
    tensors = columns(cut)
    train, test = tensors["mask"], ~tensors["mask"]
    for _ in range(2):
        for mask, mode in ((train, True), (test, False)):
            compiled.train(mode)
            with torch.set_grad_enabled(mode):
                actual = compiled(tensors["x"], cut.edge_index, mask, tensors["batch"])
            assert_equal(actual, plain(tensors["x"], cut.edge_index, mask, tensors["batch"]))


def test_several_forwards_before_one_backward(cut: Cut) -> None:
    """Each backward belongs to the structure its forward was bound to."""
    plain, compiled = both(Selecting().double(), cut)
    tensors = columns(cut)
    losses = []
    for module in (plain, compiled):
        found = [
            module(tensors["x"], cut.edge_index, mask, tensors["batch"])[0].pow(2).sum()
            for mask in (tensors["mask"], ~tensors["mask"])
        ]
        (found[0] * found[1]).backward()
        losses.append(found)
    assert_equal(tuple(losses[1]), tuple(losses[0]))
    for a, b in zip(compiled.model.parameters(), plain.parameters(), strict=True):
        assert error(a.grad, b.grad) <= tolerance(b.dtype)
