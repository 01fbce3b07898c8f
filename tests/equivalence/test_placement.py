"""Wherever edge programs run, results are those of the plain module, and bytes are those that were planned.

Every run compares the bytes it sends with its schedule, and every binding its schedules with the cost model
(`sarc/runtime/check_sent.py`): a test that trains tests that too.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sarc.ir.placement import OBJECTIVES, PLACEMENTS, SITES
from tests.equivalence.case import Case, Cut, standard_cut
from tests.equivalence.compare import check_mode, pair
from tests.equivalence.model_lists import case_named
from tests.equivalence.test_hypothesis import (
    AN_EMPTY_PART,
    LISTED,
    MORE_PARTS_THAN_NODES,
    TWO_FOLDS,
    Term,
    cuts,
    expression,
    expressions,
)

# Softmax, draws on edges, bound weights, sums and maxima of neighbours, edge tensors, selected edges.
MODELS = (
    "GATConv", "GATConv dropout", "GATv2Conv", "TransformerConv", "GCNConv weighted", "SAGEConv mean", "SAGEConv max",
    "PNAConv", "EdgeConv with batch norm on edges", "self loops replaced", "edges by a mask", "scatter_reduce mean",
    "nodes on the second axis",
)  # fmt: skip


@pytest.mark.parametrize("placement", ["src", "cover"])
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, placement: str) -> None:
    """Four parts: two ordinary ones, an empty one and one of a single row."""
    plain, compiled, values = pair(case_named(name), standard_cut(4), placement=placement)
    check_mode(case_named(name), plain, compiled, values, train=True, gradients=True)


@pytest.mark.parametrize("num_parts", [1, 2, 3])
@pytest.mark.parametrize("placement", SITES)
@pytest.mark.parametrize("name", ["GATConv dropout", "SAGEConv max"])
def test_any_number_of_parts(name: str, placement: str, num_parts: int) -> None:
    case = case_named(name)
    plain, compiled, values = pair(case, standard_cut(num_parts), placement=placement, backend="reference")
    check_mode(case, plain, compiled, values, train=True, gradients=True)


@given(st.sampled_from(LISTED), cuts(), st.sampled_from(PLACEMENTS), st.sampled_from(OBJECTIVES))
@example("GATConv dropout", AN_EMPTY_PART, "cover", "bytes")
@example("GCNConv weighted", MORE_PARTS_THAN_NODES, "src", "time")
def test_listed_models(name: str, where: Cut, placement: str, objective: str) -> None:
    check(case_named(name), where, placement, objective)


@given(expressions, cuts(), st.sampled_from(PLACEMENTS), st.sampled_from(OBJECTIVES))
@example(TWO_FOLDS, AN_EMPTY_PART, "cover", "bytes")
@example(TWO_FOLDS, MORE_PARTS_THAN_NODES, "src", "time")
def test_expressions(found: tuple[Term, ...], where: Cut, placement: str, objective: str) -> None:
    check(expression(found), where, placement, objective)


def check(case: Case, where: Cut, placement: str, objective: str) -> None:
    plain, compiled, values = pair(case, where, placement=placement, objective=objective, backend="reference")
    check_mode(case, plain, compiled, values, train=True, gradients=True)


WAYS: dict[str, dict[str, str]] = {
    "bytes": {"objective": "bytes"},
    "the paper's": {"exchange": "sar"},
    "dst": {"placement": "dst"},
    "src": {"placement": "src"},
    "cover": {"placement": "cover"},
}


@settings(max_examples=5)  # five compilations each
@given(st.one_of(st.sampled_from(LISTED).map(case_named), expressions.map(expression)), cuts())
def test_never_more_bytes_than_any_other_way(case: Case, where: Cut) -> None:
    sent = {}
    for name, options in WAYS.items():
        _, compiled, values = pair(case, where, backend="reference", **options)
        compiled.train()
        before = 0
        for _ in range(2):  # the first step also exchanges what depends on data alone
            before = compiled.traffic()["sent_bytes"]
            out = case.call(compiled, values)
            first = out[0] if isinstance(out, (tuple, list)) else out
            if first.requires_grad:
                first.sum().backward()
        sent[name] = compiled.plan().sent_bytes
        assert compiled.traffic()["sent_bytes"] - before == sent[name] or not first.requires_grad
    assert sent["bytes"] == min(sent.values()), sent
