"""What travels in the stead of values: the narrowest they can be computed from, bit for bit where that matters."""

from __future__ import annotations

from sarc.ir.frontier import Again, exact_values, find_frontier
from sarc.ir.parse import parse_program
from sarc.ir.program import Program

# An attention layer's rows: features from a product, a score of them, and a gradient that is spread over two heads.
PROGRAM = """program forward
space N = nodes
%x: f32[N, 5] = input arg x
%w: f32[5, 8] = input param w
%a: f32[1, 2, 4] = input param a
%g: f32[N, 1, 4] = input tangent 0
%wide: f32[N, 9] = input arg wide
%mm: f32[N, 8] = aten.mm(%x, %w)
%z: f32[N, 2, 4] = aten.reshape(%mm, [|N|, 2, 4])
%za: f32[N, 2, 4] = aten.mul.Tensor(%z, %a)
%el: f32[N, 2] = aten.sum.dim_IntList(%za, [-1])
%spread: f32[N, 2, 4] = aten.expand(%g, [|N|, 2, 4])
%count: f32[N, 9] = aten.mul.Tensor(%wide, |N|)
%narrow: f32[N] = aten.sum.dim_IntList(%count, [1])
return result 0 = %el
return result 1 = %spread
return result 2 = %narrow
"""


def frontier(*wanted: str, products: bool = True, exact: tuple[str, ...] = ()) -> list[str]:
    program: Program = parse_program(PROGRAM)
    nodes = {n.name: n for n in program.graph.nodes}
    again = Again("N", products, exact_values([nodes[name] for name in exact], "N"))
    return [n.name for n in find_frontier([nodes[name] for name in wanted], again).cut]


def test_a_value_that_travels_gives_what_is_computed_of_it() -> None:
    assert frontier("z", "el", products=True) == ["x"]
    assert frontier("spread") == ["g"]


def test_a_narrow_value_travels_itself() -> None:
    assert frontier("el") == ["el"]


def test_products_are_computed_again_only_when_asked() -> None:
    assert frontier("z", products=False) == ["z"]
    assert frontier("z", "el", products=False) == ["z", "el"]


def test_what_is_compared_by_equality_is_what_its_owner_has() -> None:
    assert frontier("z", exact=("z",)) == ["z"]
    assert frontier("z", "el", exact=("el",)) == ["x", "el"]
    assert frontier("spread", exact=("spread",)) == ["g"], "a copy is exact"


def test_a_number_of_rows_stays_where_it_means_the_whole_graphs() -> None:
    assert frontier("count") == ["count"]


def test_of_equal_sets_the_nearest() -> None:
    """No byte is saved by what lies behind a reshape."""
    assert frontier("za", products=False) == ["za"]
