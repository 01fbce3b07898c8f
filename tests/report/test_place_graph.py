"""Placing graphs: chains straight down, no two values in one place, operands above readers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sarc.report.describe_program import Value
from sarc.report.place_graph import place_graph


def value(name: str, *operands: str) -> Value:
    return Value(name, "aten.relu", operands, "", (), (), "", "")


def test_a_chain_goes_straight_down() -> None:
    assert place_graph([value("a"), value("b", "a"), value("c", "b")]) == [(0, 0), (0, 1), (0, 2)]


def test_an_input_stands_above_its_highest_reader() -> None:
    made = place_graph([value("x"), value("w"), value("a", "x"), value("b", "a"), value("c", "b", "w")])
    assert made[1][1] == made[4][1] - 1
    made = place_graph([value("x"), value("w"), value("a", "x"), value("b", "a", "w"), value("c", "w")])
    assert made[1][1] == made[4][1] - 1 == 0


@given(st.lists(st.lists(st.integers(0, 200), max_size=4), max_size=60))
def test_no_two_share_a_place(reads: list[list[int]]) -> None:
    values = [
        value(f"v{k}", *dict.fromkeys(f"v{o % k}" for o in operands)) if k else value("v0")
        for k, operands in enumerate(reads)
    ]
    made = place_graph(values)
    assert len(set(made)) == len(made) and all(column >= 0 for column, _ in made)
    rows = {v.name: row for v, (_, row) in zip(values, made, strict=True)}
    assert all(rows[o] < rows[v.name] for v in values for o in v.operands)
