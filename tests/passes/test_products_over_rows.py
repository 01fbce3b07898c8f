"""Products written over their rows: which ones, and that they are the products."""

from __future__ import annotations

import pytest
import torch

import sarc
from sarc.ir.dialect import MM_OVER
from sarc.ir.interpret import interpret
from sarc.ir.parse import parse_program
from sarc.ir.products import product_block
from sarc.ir.verify import verify
from sarc.passes.partitioned.reuse_storage import ReuseStorage

HEAD = """program forward
space N = nodes
%x: f32[N, 4] = input arg x
%w: f32[4, 4] = input param w
%wide: f32[4, 6] = input param wide
"""
WRITTEN_OVER = {
    "a value that goes": "%h: f32[N, 4] = aten.exp(%x)\n%y: f32[N, 4] = aten.mm(%h, %w)\n",
    "a view of one": (
        "%h: f32[N, 4] = aten.exp(%x)\n%v: f32[N, 2, 2] = aten.reshape(%h, [|N|, 2, 2])\n"
        "%u: f32[N, 4] = aten.reshape(%v, [|N|, 4])\n%y: f32[N, 4] = aten.mm(%u, %w)\n"
    ),
    "a product of a product": (
        "%h: f32[N, 4] = aten.mm(%x, %w)\n%i: f32[N, 4] = aten.mm(%h, %w)\n%y: f32[N, 4] = aten.mm(%i, %w)\n"
    ),
}
NOT = {
    "an input": "%y: f32[N, 4] = aten.mm(%x, %w)\n",
    "what is read later": (
        "%h: f32[N, 4] = aten.exp(%x)\n%p: f32[N, 4] = aten.mm(%h, %w)\n%y: f32[N, 4] = aten.add.Tensor(%p, %h)\n"
    ),
    "what a view reads later": (
        "%h: f32[N, 4] = aten.exp(%x)\n%v: f32[N] = aten.select.int(%h, 1, 0)\n%p: f32[N, 4] = aten.mm(%h, %w)\n"
        "%u: f32[N, 1] = aten.unsqueeze(%v, -1)\n%y: f32[N, 4] = aten.add.Tensor(%p, %u)\n"
    ),
    "part of a wider table": (
        "%h: f32[N, 6] = aten.mm(%x, %wide)\n%v: f32[N, 4] = aten.slice.Tensor(%h, 1, 1, 5)\n"
        "%y: f32[N, 4] = aten.mm(%v, %w)\n"
    ),
    "rows of one number, spread": (
        "%s: f32[N, 1] = aten.sum.dim_IntList(%x, [1], True)\n%h: f32[N, 4] = aten.expand(%s, [|N|, 4])\n"
        "%y: f32[N, 4] = aten.mm(%h, %w)\n"
    ),
    "another width": (
        "%h: f32[N, 4] = aten.exp(%x)\n%p: f32[N, 6] = aten.mm(%h, %wide)\n"
        "%y: f32[N, 4] = aten.slice.Tensor(%p, 1, 0, 4)\n"
    ),
}


@pytest.mark.parametrize("lines", WRITTEN_OVER.values(), ids=WRITTEN_OVER)
def test_a_product_takes_the_place_of_rows_that_go(lines: str) -> None:
    plain = parse_program(f"{HEAD}{lines}return result 0 = %y\n")
    over = ReuseStorage(None).run(plain)
    verify(over)
    assert sum(n.target is MM_OVER for n in over.graph.nodes) == max(1, lines.count("mm(") - 1)
    values = [torch.randn(n, 4) for n in (9, 4)] + [torch.randn(4, 6)]
    given = {entry: value for entry, value in zip("x w wide".split(), values, strict=True)}

    def run(program):
        return interpret(program, [given[entry.name].clone() for entry in program.inputs], {"N": 9})[0]

    torch.testing.assert_close(run(over), run(plain))


@pytest.mark.parametrize("lines", NOT.values(), ids=NOT)
def test_what_is_read_or_held_is_not_written_over(lines: str) -> None:
    plain = parse_program(f"{HEAD}{lines}return result 0 = %y\n")
    assert ReuseStorage(None).run(plain) is plain


NARROWED = "%h: f32[N, 6] = aten.mm(%x, %wide)\n%y: f32[N, 4] = aten.mm(%h, %back)\n%z: f32[N, 4] = aten.exp(%y)\n"


def test_where_memory_counts_a_product_fills_the_front_of_wider_rows() -> None:
    head = f"{HEAD}%back: f32[6, 4] = input param back\n{NARROWED}"
    plain = parse_program(f"{head}return result 0 = %z\n")
    assert ReuseStorage(None).run(plain) is plain
    over = verify(ReuseStorage(None, tight=True).run(plain))
    assert sum(n.target is MM_OVER for n in over.graph.nodes) == 1
    shapes = {"x": (9, 4), "w": (4, 4), "wide": (4, 6), "back": (6, 4)}
    given = [torch.randn(shapes[entry.name]) for entry in over.inputs]
    torch.testing.assert_close(interpret(over, given, {"N": 9}), interpret(plain, given, {"N": 9}))
    for returned in ("%y", "%v"):  # the result would hold all of the table
        lines = f"{head}%v: f32[N, 2, 2] = aten.reshape(%y, [|N|, 2, 2])\nreturn result 0 = {returned}\n"
        held = parse_program(f"{lines}return result 1 = %z\n")
        assert ReuseStorage(None, tight=True).run(held) is held
    thin = head.replace("[6, 4]", "[6, 2]").replace("%y: f32[N, 4]", "%y: f32[N, 2]")
    idle = parse_program(f"{thin.replace('%z: f32[N, 4]', '%z: f32[N, 2]')}return result 0 = %z\n")
    assert ReuseStorage(None, tight=True).run(idle) is idle, "most of the table would lie idle"


def test_a_result_does_not_take_the_front_of_wider_rows_through_another_product() -> None:
    head = f"{HEAD}%back: f32[6, 4] = input param back\n"
    chain = "%h: f32[N, 6] = aten.mm(%x, %wide)\n%y: f32[N, 4] = aten.mm(%h, %back)\n%z: f32[N, 4] = aten.mm(%y, %w)\n"
    plain = parse_program(f"{head}{chain}return result 0 = %z\n")
    products = (torch.ops.aten.mm.default, MM_OVER)
    over = verify(ReuseStorage(None, tight=True).run(plain))
    assert [n.target is MM_OVER for n in over.graph.nodes if n.target in products] == [False, True, False]
    further = f"{chain}%u: f32[N, 4] = aten.exp(%z)\nreturn result 0 = %u\n"
    over = verify(ReuseStorage(None, tight=True).run(parse_program(f"{head}{further}")))
    assert [n.target is MM_OVER for n in over.graph.nodes if n.target in products] == [False, True, True]


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("objective", ["time", "memory"])
def test_rows_that_do_not_lie_one_behind_another(width: int, objective: str) -> None:
    class Product(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(16, width))

        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            h = (torch.exp(x) @ self.weight).sin()
            return torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])

    torch.manual_seed(0)
    model, x = Product(), torch.randn(16, 300).t()
    edge_index = torch.randint(300, (2, 900))
    with torch.no_grad():
        made = sarc.compile(model, 1, objective=objective, backend="reference")(x, edge_index)
        torch.testing.assert_close(made, model(x, edge_index))
    table = x.clone(memory_format=torch.preserve_format)
    torch.testing.assert_close(torch.ops.sarc.mm_(table, model.weight.detach()), x @ model.weight.detach())


@pytest.mark.parametrize("rows", [0, 1, 4096, 4097])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("width", [64, 40, 1])
def test_blocks_of_rows_make_the_whole_product(rows: int, transposed: bool, width: int) -> None:
    assert product_block(64, 8, "cpu") == 2048
    x, matrix = torch.randn(rows, 64, dtype=torch.float64), torch.randn(64, width, dtype=torch.float64)
    expected, table = x @ matrix, x.clone()
    made = torch.ops.sarc.mm_(table, matrix.t().contiguous().t() if transposed else matrix)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    assert made.is_contiguous() and made.data_ptr() == table.data_ptr()
