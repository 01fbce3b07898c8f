"""Covers are of least weight: against matchings and cuts of networkx, and every subset of few rows."""

from __future__ import annotations

import itertools

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sarc.partition.cover import minimum_cover, ratio


@st.composite
def blocks(draw, most: int = 6):
    num_far, num_near = draw(st.integers(1, most)), draw(st.integers(1, most))
    ends = st.tuples(st.integers(0, num_far - 1), st.integers(0, num_near - 1))
    edges = draw(st.lists(ends, max_size=3 * most))
    far, near = (torch.tensor([e[k] for e in edges], dtype=torch.int64) for k in (0, 1))
    return far, near, num_far, num_near


def weigh(cover, weights) -> int:
    return int(cover.far.sum()) * weights[0] + int(cover.near.sum()) * weights[1]


def covers(far, near, cover) -> bool:
    return bool((cover.far[far] | cover.near[near]).all())


@given(blocks(), st.tuples(st.integers(0, 9), st.integers(0, 9)))
@settings(deadline=None)
def test_least_of_all_subsets(block, weights):
    far, near, num_far, num_near = block
    cover = minimum_cover(*block, weights)
    assert covers(far, near, cover)
    best = min(
        sum(chosen[:num_far]) * weights[0] + sum(chosen[num_far:]) * weights[1]
        for chosen in itertools.product((0, 1), repeat=num_far + num_near)
        if all(chosen[f] or chosen[num_far + n] for f, n in zip(far.tolist(), near.tolist(), strict=True))
    )
    assert weigh(cover, weights) == best


@given(blocks(most=40))
@settings(deadline=None)
def test_as_many_rows_as_a_maximum_matching(block):
    far, near, num_far, _ = block
    graph = nx.Graph()
    graph.add_nodes_from(range(num_far))
    graph.add_edges_from((f, num_far + n) for f, n in zip(far.tolist(), near.tolist(), strict=True))
    matching = nx.bipartite.maximum_matching(graph, top_nodes=range(num_far))
    cover = minimum_cover(*block, (1, 1))
    assert covers(far, near, cover)
    assert weigh(cover, (1, 1)) == len(matching) // 2


@given(blocks(most=25), st.tuples(st.integers(1, 600), st.integers(1, 600)))
@settings(deadline=None)
def test_as_heavy_as_a_minimum_cut_of_networkx(block, weights):
    far, near, num_far, num_near = block
    graph = nx.DiGraph()
    graph.add_nodes_from(("source", "sink"))
    for f in range(num_far):
        graph.add_edge("source", ("far", f), capacity=weights[0])
    for n in range(num_near):
        graph.add_edge(("near", n), "sink", capacity=weights[1])
    graph.add_edges_from((("far", f), ("near", n)) for f, n in zip(far.tolist(), near.tolist(), strict=True))
    value, _ = nx.minimum_cut(graph, "source", "sink")
    cover = minimum_cover(*block, weights)
    assert covers(far, near, cover)
    assert weigh(cover, weights) == value


@pytest.mark.parametrize("weights", [(1, 1), (33, 35), (2**28, 2**28 + 1)])
def test_a_large_block(weights):
    """Sums of weights beyond int32 are scaled."""
    generator = torch.Generator().manual_seed(0)
    far = (torch.rand(20_000, generator=generator) ** 3 * 3000).long()
    near = (torch.rand(20_000, generator=generator) ** 3 * 3000).long()
    cover = minimum_cover(far, near, 3000, 3000, weights)
    assert covers(far, near, cover)
    assert weigh(cover, weights) <= min(far.unique().numel() * weights[0], near.unique().numel() * weights[1])
    shuffled = torch.randperm(far.numel(), generator=generator)
    again = minimum_cover(far[shuffled], near[shuffled], 3000, 3000, weights)
    assert torch.equal(cover.far, again.far)
    assert torch.equal(cover.near, again.near)


def test_ratio():
    assert ratio(528, 560) == (33, 35)
    assert ratio(0, 0) == (0, 0)
    assert ratio(0, 8) == (0, 1)
