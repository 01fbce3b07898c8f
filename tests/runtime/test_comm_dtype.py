"""comm_dtype: half the bytes, at an error that follows from the rounding of each number sent."""

from __future__ import annotations

import pytest
import torch

import sarc
from sarc.errors import OptionError
from tests.equivalence.case import standard_cut
from tests.runtime.exchanges import FEATURES, build

EPSILON = 2.0**-8  # of bfloat16: one rounding errs by half of it


@pytest.mark.parametrize("exchange", ["ring", "whole", "sar"])
@pytest.mark.parametrize("layer", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_half_the_bytes_and_a_small_error(layer: str, exchange: str, backend: str) -> None:
    cut, found, sent = standard_cut(4), [], []
    for dtype in (None, torch.bfloat16):
        model = build(layer).float()
        x = torch.randn(23, FEATURES, generator=torch.Generator().manual_seed(0)).requires_grad_()
        settings = {"exchange": exchange, "backend": backend, "spaces": {"x": "N"}}
        compiled = sarc.compile(model, cut.partitions(), comm_dtype=dtype, **settings)
        out = compiled(x, cut.edge_index)
        out.sum().backward()
        found.append([out.detach(), x.grad, *(p.grad for p in model.parameters())])
        sent.append(compiled.traffic()["sent_bytes"])
        assert sent[-1] == compiled.plan().sent_bytes
    assert 2 * sent[1] == sent[0]
    errors = [float((a - b).norm() / b.norm().clamp(min=1e-3)) for b, a in zip(*found, strict=True)]
    assert 0 < max(errors) <= 2 * EPSILON, errors


def test_it_is_never_wider_than_the_numbers() -> None:
    cut, model = standard_cut(2), build("gcn").bfloat16()
    x = torch.randn(23, FEATURES).bfloat16()
    compiled = sarc.compile(model, cut.partitions(), comm_dtype=torch.float32, spaces={"x": "N"})
    narrow = sarc.compile(model, cut.partitions(), spaces={"x": "N"})
    assert torch.equal(compiled(x, cut.edge_index), narrow(x, cut.edge_index))
    assert compiled.traffic() == narrow.traffic()


@pytest.mark.parametrize("dtype", [torch.int8, "bfloat16", torch.float64])
def test_other_dtypes_are_refused(dtype: object) -> None:
    with pytest.raises(OptionError, match="comm_dtype: expected None or a floating-point dtype"):
        sarc.compile(build("gcn"), 2, comm_dtype=dtype)
