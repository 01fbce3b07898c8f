"""Edge programs are folds: blocks of edges in any order give what one block gives; messages are laid out aligned."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sarc.ir.dialect import fold_rows
from sarc.ir.edge_program import (
    ChunkLayout,
    EdgeProgram,
    combine_,
    fetch_layout,
    new_accumulator,
    return_layout,
    run_whole,
    select_block,
)
from sarc.ir.parse import parse_program
from sarc.ir.space import Rows

TEXT = """program forward
space N = nodes
space E = edges on edges
edges @edges0 over E remote #0
  %z: f64[E, 3] = gather $0 by #0 axis 0
  %t: f64[2, E] = gather $1 by #1 axis 1
  %e: f64[E, 3] = rows $2 axis 0
  %flat: f64[E*2] = rows $3 axis 0
  %w: f64[3, 3] = whole $4
  %rng: i64[2] = whole $5
  %m: f64[E, 3] = aten.mm(%z, %w)
  %s: f64[E, 3] = aten.mul.Tensor(%m, %e)
  %u: f32[E, 3] = sarc.uniform(%rng, [|E|, 3], 4)
  %k: bool[E, 3] = aten.gt.Scalar(%u, 0.3)
  %d: f64[E, 3] = aten.mul.Tensor(%s, %k)
  %g: f64[3] = aten.sum.dim_IntList(%d, [0])
  %top: f64[3] = aten.amax(%s, [0])
  %v: f64[E, 2] = aten.reshape(%flat, [|E|, 2])
  %b: bool[E, 3] = aten.gt.Scalar(%s, 0)
  reduce sum by #1 axis 0 %d: f64[N, 3]
  reduce amax by #0 axis 0 %s: f64[N, 3]
  reduce amin by #1 axis 1 %t: f64[2, N]
  reduce amax by #1 axis 0 %b: bool[N, 3]
  contract sum %g: f64[3]
  contract max %top: f64[3]
  store axis 0 %v: f64[E, 2]
%z: f64[N, 3] = input arg z
%t: f64[2, N] = input arg t
%e: f64[E, 3] = input arg e
%flat: f64[E*2] = input arg flat
%w: f64[3, 3] = input param w
%rng: i64[2] = input rng rng
%src: i64[E] = input bound src
%dst: i64[E] = input bound dst
%call: (f64[N, 3], f64[N, 3], f64[2, N], bool[N, 3], f64[3], f64[3], f64[E, 2]) = edge_call(@edges0, [%z, %t, %e, \
%flat, %w, %rng], [%src, %dst])
"""


def edge_program() -> EdgeProgram:
    node = next(n for n in parse_program(TEXT).graph.nodes if n.name == "call")
    return node.args[0]


def run_blocks(edges: EdgeProgram, values, columns, sizes, blocks: list[torch.Tensor]) -> list[torch.Tensor]:
    """The program block by block: operands selected, results folded into accumulators."""
    folded = [new_accumulator(r, sizes, torch.device("cpu")) for r in edges.results]
    for rows in blocks:
        if not rows.numel():
            continue
        operands = []
        for o in edges.operands:
            value = values[o.value]
            if o.column is not None:
                value = value.index_select(o.axis, columns[o.column][rows])
            elif o.axis is not None:
                value = select_block(value, o.axis, o.type.dims[o.axis], rows)
            operands.append(value)
        local = {**sizes, "E": rows.numel()}
        for k, (result, value) in enumerate(
            zip(edges.results, edges.run_block(operands, local, sizes, {"E": rows}), strict=True)
        ):
            if result.kind == "reduce":
                fold_rows(folded[k], result.axis, columns[result.column][rows], value, result.fold)
            elif result.kind == "contract":
                combine_(folded[k], value, result.fold)
            else:
                folded[k].index_copy_(result.axis, rows, value)
    return folded


@given(st.integers(1, 6), st.lists(st.integers(0, 3), min_size=1, max_size=14), st.randoms())
def test_blocks_of_edges_in_any_order_give_the_whole(nodes: int, owners: list[int], shuffle) -> None:
    edges, count = edge_program(), len(owners)
    draw = torch.Generator().manual_seed(count * 7 + nodes)
    values = [
        torch.randn(nodes, 3, generator=draw, dtype=torch.float64),
        torch.randn(2, nodes, generator=draw, dtype=torch.float64),
        torch.randn(count, 3, generator=draw, dtype=torch.float64),
        torch.randn(count * 2, generator=draw, dtype=torch.float64),
        torch.randn(3, 3, generator=draw, dtype=torch.float64),
        torch.tensor([1, 2]),
    ]
    columns = [torch.randint(0, nodes, (count,), generator=draw) for _ in range(2)]
    sizes = {"N": nodes, "E": count}
    blocks = [torch.tensor([e for e, owner in enumerate(owners) if owner == q], dtype=torch.int64) for q in range(4)]
    shuffle.shuffle(blocks)
    blocks = [b[torch.tensor(shuffle.sample(range(b.numel()), b.numel()), dtype=torch.int64)] for b in blocks]
    whole = run_whole(edges, values, columns, sizes, {"E": torch.arange(count)})
    for got, expected in zip(run_blocks(edges, values, columns, sizes, blocks), whole, strict=True):
        # Sums of at most 14 terms in another order.
        assert torch.allclose(got.double(), expected.double(), rtol=0, atol=1e-12)


def test_columns_in_use() -> None:
    edges = edge_program()
    assert edges.columns_used("gather") == {0, 1}
    assert edges.columns_used("reduce") == {0, 1}


def test_layouts_hold_what_crosses_through_the_remote_column() -> None:
    program = parse_program(TEXT)
    node = next(n for n in program.graph.nodes if n.name == "call")
    edges, values, _ = node.args
    fetch = fetch_layout(edges, [v.meta["type"] for v in values], program.spaces)
    assert fetch.entries == ((0, 0, torch.float64, (3,)),) and fetch.row_bytes == 24
    back = return_layout(edges, program.spaces)
    assert back.entries == ((1, 0, torch.float64, (3,)),) and back.row_bytes == 24
    narrow = return_layout(edges, program.spaces, torch.bfloat16)
    assert narrow.entries == ((1, 0, torch.bfloat16, (3,)),) and narrow.row_bytes == 6


DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
SHAPES = st.lists(st.integers(1, 4), max_size=2).map(tuple)


@given(st.lists(st.tuples(DTYPES, SHAPES), min_size=1, max_size=5), st.integers(0, 7))
def test_segments_of_a_chunk_are_aligned_disjoint_and_cover_it(columns, rows: int) -> None:
    ordered = sorted(enumerate(columns), key=lambda item: (-item[1][0].itemsize, item[0]))
    layout = ChunkLayout(tuple((key, 0, dtype, shape) for key, (dtype, shape) in ordered))
    buffer = torch.zeros(rows * layout.row_bytes, dtype=torch.uint8)
    segments = layout.segments(buffer, rows)
    assert set(segments) == set(range(len(columns)))
    for key, segment in segments.items():
        dtype, shape = columns[key]
        assert segment.dtype is dtype and segment.shape == (rows, *shape)
        assert segment.numel() == 0 or segment.data_ptr() % dtype.itemsize == 0
        segment.view(torch.uint8).add_(1)
    # Every byte was touched once: no gap, no overlap.
    assert bool((buffer == 1).all())


def test_a_table_puts_the_rows_on_their_own_axis() -> None:
    layout = ChunkLayout(((3, 1, torch.float32, (2,)),))
    buffer = torch.zeros(5 * 8, dtype=torch.uint8)
    assert layout.table(buffer, 5)[3].shape == (2, 5)


@given(st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(0, 4), max_size=6))
def test_blocks_of_flattened_rows(before: int, after: int, rows: list[int]) -> None:
    value = torch.arange(before * 5 * after * 2).view(before * 5 * after, 2)
    picked = select_block(value, 0, Rows("E", before, after), torch.tensor(rows, dtype=torch.int64))
    expected = value.view(before, 5, after, 2)[:, rows].reshape(before * len(rows) * after, 2)
    assert torch.equal(picked, expected)
