"""Spaces: sizes, surrogate lengths, derived sets and how types are printed."""

from __future__ import annotations

import pytest
import sympy
import torch

from sarc.errors import UnsupportedModelError
from sarc.ir.space import Rows, Size, Space, Spaces, ValueType


def two_spaces() -> Spaces:
    spaces = Spaces()
    spaces.add(Space("N", "nodes"))
    spaces.add(Space("E", "edges", on_edges=True))
    return spaces


def test_a_length_names_its_space() -> None:
    spaces = two_spaces()
    spaces.concat(("E", "N"))
    for name in ("N", "E", "S0"):
        for factor in (1, 2, 8):
            assert spaces.of_number(spaces.surrogates[name] * factor) == Rows(name, 1, factor)
    for static in (0, 1, 64, 4096, 65_535):
        assert spaces.of_number(static) == static


def test_sizes_of_a_concat_are_sums() -> None:
    spaces = two_spaces()
    spaces.add(Space("S0", "filter", ("E",), "keep", on_edges=True))
    made = spaces.concat(("S0", "N"))
    assert made == Space("S1", "concat", ("S0", "N"), on_edges=True)
    assert spaces.sizes["S1"] == sympy.Symbol("S0") + sympy.Symbol("N")
    assert spaces.concat(("S0", "N")) is spaces["S1"]
    assert spaces.numbers({"N": 3, "E": 9}) == {"N": 3, "E": 9}
    assert spaces.numbers({"N": 3, "E": 9, "S0": 5}) == {"N": 3, "E": 9, "S0": 5, "S1": 8}


def test_two_orders_of_one_concat_are_refused() -> None:
    spaces = two_spaces()
    spaces.concat(("E", "N"))
    with pytest.raises(UnsupportedModelError, match="two orders of equal length"):
        spaces.concat(("N", "E"))


def test_a_name_stands_for_one_space() -> None:
    spaces = two_spaces()
    assert spaces.add(Space("N", "nodes")) == spaces["N"]
    with pytest.raises(ValueError, match="two spaces named N"):
        spaces.add(Space("N", "edges"))


def test_a_copy_is_independent() -> None:
    spaces = two_spaces()
    other = spaces.copy()
    other.concat(("E", "N"))
    assert "S0" in other and "S0" not in spaces
    assert spaces.fresh_name() == "S0" and other.fresh_name() == "S1"


def test_types_print_their_rows_and_layout() -> None:
    dims = (Rows("N", 2, 3), 4, Rows("E"))
    assert str(ValueType(dims, torch.bfloat16)) == "bf16[2*N*3, 4, E]"
    assert ValueType(dims, torch.float32).spaces == ("N", "E")
    assert ValueType(dims, torch.float32).axis_of("E") == 2
    assert ValueType(dims, torch.float32).row_axis == 0
    assert ValueType((4,), torch.float32).row_axis is None
    with pytest.raises(ValueError, match="has no rows of S0"):
        ValueType(dims, torch.float32).axis_of("S0")


def test_sizes_are_whole_where_they_can_be() -> None:
    rows = sympy.Symbol("N")
    assert Size(rows * 4).value({"N": 3}) == 12 and isinstance(Size(rows * 4).value({"N": 3}), int)
    assert Size(1 / rows).value({"N": 4}) == 0.25
    assert str(Size(rows + 1)) == "|N + 1|"


def test_surrogates_are_apart_from_each_other_and_from_feature_sizes() -> None:
    spaces = two_spaces()
    for k in range(12):
        spaces.add(Space(f"S{k}", "filter", ("E",), f"m{k}"))
    lengths = list(spaces.surrogates.values())
    assert len(set(lengths)) == len(lengths)
    assert min(lengths) > 65_536 * 100
    # Sums of two (concats) name no other space.
    sums = {a + b for i, a in enumerate(lengths) for b in lengths[i + 1 :]}
    assert len(sums) == len(lengths) * (len(lengths) - 1) // 2
    assert not sums & set(lengths)
