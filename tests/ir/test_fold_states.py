"""Which results of an edge program are sums relative to a maximum that it reads, and which only look so."""

from __future__ import annotations

import pytest

from sarc.ir.edge_program import edge_call
from sarc.ir.fold_states import find_fold_states, relative_sums
from sarc.ir.parse import parse_program

HEAD = """program forward
space N = nodes
space E = edges on edges
edges @edges0 over E
  %x: f32[E, 2] = gather $0 by #0 axis 0
  reduce amax by #1 axis 0 %x: f32[N, 2]
edges @edges1 over E
  %x: f32[E, 2] = gather $0 by #0 axis 0
  %m: f32[E, 2] = gather $1 by #1 axis 0
  %z: f32[E, 2, 2] = gather $2 by #0 axis 0
  %d: f32[E, 2] = aten.sub.Tensor(%x, %m)
  %e: f32[E, 2] = aten.exp(%d)
"""
TAIL = """%score: f32[N, 2] = input arg score
%values: f32[N, 2, 2] = input arg values
%some: bool[N, 1] = input bound some
%src: i64[E] = input bound src
%dst: i64[E] = input bound dst
%call: (f32[N, 2]) = edge_call(@edges0, [%score], [%src, %dst])
%most: f32[N, 2] = getitem(%call, 0)
%none: f32[N, 2] = aten.full([|N|, 2], 0, dtype=f32)
%top: f32[N, 2] = aten.where.self(%some, %most, %none)
"""
SUM = "  reduce sum by #1 axis 0 %e: f32[N, 2]\n"
WEIGHTED = """  %u: f32[E, 2, 1] = aten.unsqueeze(%e, -1)
  %w: f32[E, 2, 2] = aten.mul.Tensor(%u, %z)
"""


def program(body: str, results: str, read: str = "%top"):
    call = f"%sums: ({results}) = edge_call(@edges1, [%score, {read}, %values], [%src, %dst])\n"
    return parse_program(HEAD + body + TAIL + call + "%out: f32[N, 2] = getitem(%sums, 0)\nreturn result 0 = %out\n")


def sums(body: str, results: str) -> tuple[int, ...]:
    found = program(body, results)
    edges = [n.args[0] for n in found.graph.nodes if n.target is edge_call][-1]
    return relative_sums(edges, 1)


def test_a_sum_of_exponentials_and_a_weighted_one() -> None:
    body = WEIGHTED + SUM + "  reduce sum by #1 axis 0 %w: f32[N, 2, 2]\n"
    assert sums(body, "f32[N, 2], f32[N, 2, 2]") == (0, 1)


def test_features_may_be_summed_and_terms_scaled_masked_and_added() -> None:
    body = WEIGHTED + (
        "  %s: f32[E, 2] = aten.sum.dim_IntList(%w, [2])\n"
        "  %half: f32[E, 2] = aten.div.Tensor(%s, 2.0)\n"
        "  %both: f32[E, 2] = aten.add.Tensor(%half, %e)\n"
        "  reduce sum by #1 axis 0 %both: f32[N, 2]\n"
    )
    assert sums(body, "f32[N, 2]") == (0,)


@pytest.mark.parametrize(
    ("body", "results"),
    [
        ("  %t: f32[E, 2] = aten.mul.Tensor(%e, %e)\n  reduce sum by #1 axis 0 %t: f32[N, 2]\n", "f32[N, 2]"),
        ("  %t: f32[E, 2] = aten.mul.Tensor(%e, %m)\n  reduce sum by #1 axis 0 %t: f32[N, 2]\n", "f32[N, 2]"),
        ("  %t: f32[E, 2] = aten.add.Tensor(%e, %x)\n  reduce sum by #1 axis 0 %t: f32[N, 2]\n", "f32[N, 2]"),
        ("  %t: f32[E, 2] = aten.div.Tensor(%x, %e)\n  reduce sum by #1 axis 0 %t: f32[N, 2]\n", "f32[N, 2]"),
        ("  %t: f32[E, 2] = aten.relu(%d)\n  reduce sum by #1 axis 0 %t: f32[N, 2]\n", "f32[N, 2]"),
        # Summed over heads, whose maxima differ: the axis that is left is as long as theirs.
        (WEIGHTED + "  %t: f32[E, 2] = aten.sum.dim_IntList(%w, [1])\n  reduce sum by #1 axis 0 %t: f32[N, 2]\n",
         "f32[N, 2]"),
        (WEIGHTED + "  %t: f32[E, 4] = aten.reshape(%w, [|E|, 4])\n  reduce sum by #1 axis 0 %t: f32[N, 4]\n",
         "f32[N, 4]"),
        ("  reduce amax by #1 axis 0 %e: f32[N, 2]\n", "f32[N, 2]"),
        ("  reduce sum by #0 axis 0 %e: f32[N, 2]\n", "f32[N, 2]"),
        ("  reduce sum by #1 axis 0 %x: f32[N, 2]\n", "f32[N, 2]"),
    ],
    ids=["squared", "times the maximum", "plus the score", "divided by it", "not exponential", "over heads",
         "flattened", "its maximum", "to sources", "without it"],
)  # fmt: skip
def test_not_relative(body: str, results: str) -> None:
    assert sums(body, results) == ()


def test_a_state_is_a_maximum_of_the_same_rows_and_sums_relative_to_it() -> None:
    state = find_fold_states(program(SUM, "f32[N, 2]"))
    assert [(s.value.name, s.maximum.name, s.source.name, s.sums) for s in state] == [("top", "most", "call", (0,))]


def test_no_state_of_what_is_no_maximum() -> None:
    assert find_fold_states(program(SUM, "f32[N, 2]", read="%score")) == []
