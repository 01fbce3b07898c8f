"""Every layout rule on legal and illegal rows: the op table's promise to passes and users."""

from __future__ import annotations

import pytest
import torch

from sarc.errors import UnsupportedModelError
from sarc.ir import dialect_rules, layout_rules
from sarc.ir.dialect import MM_OVER
from sarc.ir.ops import POINTWISE, TABLE, contracted, infer
from sarc.ir.parse import parse_program

HEAD = """program step
space N = nodes
space E = edges on edges
space S0 = concat(N, E)
%x: f32[N, 4] = input arg x
%y: f32[N, 4] = input arg y
%e: f32[E, 4] = input arg e
%c: f32[S0, 4] = input arg c
%w: f32[4, 6] = input param w
%row: f32[1, 4] = input param row
%one: f32[4] = input param one
%seven: f32[7, 4] = input param seven
%h: f32[N, 2, 3] = input arg h
%xt: f32[4, N] = input arg xt
%flat: f32[2*N] = input arg flat
%mask: bool[N] = input arg mask
%src: i64[E] = input bound src
%ids: i64[N, 4] = input arg ids
%rng: i64[2] = input rng rng
%loose: i64[5] = input param loose
"""

# Text of the call -> its type, as printed; "!" and words of the message where it is refused.
CALLS = {
    # pointwise
    "aten.add.Tensor(%x, %y)": "f32[N, 4]",
    "aten.add.Tensor(%x, %row)": "f32[N, 4]",
    "aten.add.Tensor(%x, %one)": "f32[N, 4]",
    "aten.where.self(%mask, %flat, 0)": "!",
    "aten.add.Tensor(%x, %e)": "!does not fit",
    "aten.add.Tensor(%x, %seven)": "!does not fit",
    "aten.mul.Tensor(%x, |1/N|)": "f32[N, 4]",
    "aten.add.Tensor(%h, %one)": "!does not fit",
    # created
    "aten.full([|N|, 3], 0, dtype=f32)": "f32[N, 3]",
    "aten.full([|2*N|], 0, dtype=i64)": "i64[N*2]",
    "aten.full([|N + E|], 0, dtype=bool)": "bool[S0]",
    "sarc.row_ids(|E|)": "i64[E]",
    "sarc.uniform(%rng, [|E|, 2], 3)": "f32[E, 2]",
    # reshape
    "aten.reshape(%x, [|N|, 2, 2])": "f32[N, 2, 2]",
    "aten.reshape(%x, [|4*N|])": "f32[N*4]",
    "aten.reshape(%xt, [|4*N|])": "f32[4*N]",
    "aten.reshape(%flat, [2, |N|])": "f32[2, N]",
    "aten.reshape(%flat, [|N|, 2])": "!splits the row dimension",
    "aten.reshape(%x, [2, |2*N|])": "!splits the row dimension",
    "aten.reshape(%seven, [28])": "f32[28]",
    # expand, permute, transpose, unsqueeze, squeeze
    "aten.expand(%row, [|N|, 4])": "f32[N, 4]",
    "aten.expand(%x, [3, |N|, 4])": "f32[3, N, 4]",
    "aten.permute(%h, [2, 0, 1])": "f32[3, N, 2]",
    "aten.t(%x)": "f32[4, N]",
    "aten.transpose.int(%h, 0, 2)": "f32[3, 2, N]",
    "aten.unsqueeze(%x, -1)": "f32[N, 4, 1]",
    "aten.squeeze.dims(%row, [0])": "f32[4]",
    "aten.squeeze.dims(%x, [0])": "f32[N, 4]",
    # one axis
    "aten._softmax(%x, 1, False)": "f32[N, 4]",
    "aten._softmax(%x, 0, False)": "!mixes rows of different owners",
    "aten.sort(%x, 1)": "(f32[N, 4], i64[N, 4])",
    "aten.sort(%x, 0)": "!mixes rows of different owners",
    "aten.cumsum(%x, 0)": "!mixes rows of different owners",
    "aten.split.Tensor(%x, 2, 1)": "(f32[N, 2], f32[N, 2])",
    "aten.unbind.int(%h, 1)": "(f32[N, 3], f32[N, 3])",
    "aten.select.int(%h, 1, 0)": "f32[N, 3]",
    "aten.select.int(%x, 0, 3)": "!picks one row by position",
    "aten.slice.Tensor(%x, 1, 1, 3)": "f32[N, 2]",
    "aten.slice.Tensor(%x, 0, 0, 2)": "!slices rows by position",
    "aten.slice.Tensor(%c, 0, 0, |N|)": "f32[N, 4]",
    "aten.slice.Tensor(%c, 0, |N|)": "f32[E, 4]",
    "aten.slice.Tensor(%c, 0, 1, |N|)": "!slices rows by position",
    "aten.flip(%x, [1])": "f32[N, 4]",
    "aten.flip(%x, [0])": "!reorders rows by position",
    "aten.repeat(%x, [1, 2])": "f32[N, 8]",
    "aten.repeat(%x, [3, 1])": "f32[3*N, 4]",
    # cat, stack
    "aten.cat([%x, %h], 1)": "!does not fit",
    "aten.cat([%x, %y], 1)": "f32[N, 8]",
    "aten.cat([%x, %e], 0)": "f32[S0, 4]",
    "aten.cat([%x, %seven], 0)": "!appends replicated rows",
    "aten.stack([%x, %y], 1)": "f32[N, 2, 4]",
    # reductions and contractions
    "aten.sum.dim_IntList(%x, [1])": "f32[N]",
    "aten.sum.dim_IntList(%x, [0], True)": "f32[1, 4]",
    "aten.sum(%x)": "f32[]",
    "aten.amax(%x, [0])": "f32[4]",
    "aten.argmax(%x, 1)": "i64[N]",
    "aten.argmax(%x, 0)": "!mixes rows of different owners",
    "aten.mean.dim(%x, [0])": "!mixes rows of different owners",
    "aten.prod.dim_int(%x, 0)": "!mixes rows of different owners",
    # matrices
    "aten.mm(%x, %w)": "f32[N, 6]",
    "aten.mm(%xt, %y)": "f32[4, 4]",
    "aten.mm(%x, %xt)": "!makes a matrix of rows by rows",
    "aten.mm(%xt, %e)": "!does not fit",
    # the graph dialect
    "sarc.gather(%x, %src, 0)": "f32[E, 4]",
    "sarc.gather(%xt, %src, 1)": "f32[4, E]",
    "sarc.gather(%flat, %src, 0)": "!gathers from flattened rows",
    "sarc.reduce(%e, %src, 0, |N|, 'sum')": "f32[N, 4]",
    "sarc.reduce(%e, %src, 0, 9, 'amax')": "f32[9, 4]",
    "sarc.reduce(%x, %src, 0, |N|, 'sum')": "!one column entry a row",
    "sarc.select_rows(%mask)": "i64[S1]",
    # features by index
    "aten.gather(%x, 1, %ids)": "f32[N, 4]",
    "aten.gather(%x, 0, %ids)": "!mixes rows of different owners",
    "aten.index_select(%x, 1, %loose)": "f32[N, 5]",
    "aten.index_select(%x, 0, %loose)": "!mixes rows of different owners",
    "aten.select_scatter(%h, %x, 1, 0)": "!",
    "aten.select_scatter(%xt, %mask, 0, 1)": "f32[4, N]",
    "aten.select_scatter(%xt, %flat, 0, 1)": "!mixes rows of different owners",
    "aten.slice_scatter(%x, %y, 1)": "f32[N, 4]",
    "aten.select_backward(%one, [3, 4], 0, 1)": "f32[3, 4]",
    "aten.slice_backward(%x, [|N|, 9], 1, 0, 4, 1)": "f32[N, 9]",
    # not in the table: fine on replicated values, refused on rows
    "aten.inverse(%w)": "!",
    "aten.tril(%w)": "f32[4, 6]",
    "aten.tril(%x)": "!is not known to work row by row",
}


@pytest.mark.parametrize(("call", "expected"), CALLS.items(), ids=CALLS)
def test_the_type_of_a_call(call: str, expected: str) -> None:
    # The type after the colon is not read by infer: any will do.
    program = parse_program(f"{HEAD}%result: f32[] = {call}   # model.py:7\nreturn result 0 = %result\n")
    node = program.returned[0]
    if expected.startswith("!"):
        with pytest.raises(UnsupportedModelError) as error:
            infer(node, program.spaces)
        assert expected[1:] in str(error.value)
        assert str(error.value).startswith("model.py:7: ")
        return
    found = infer(node, program.spaces)
    assert (str(found) if not isinstance(found, tuple) else f"({', '.join(map(str, found))})") == expected


CONTRACTIONS = {
    "aten.sum.dim_IntList(%x, [0])": "sum",
    "aten.mm(%xt, %y)": "sum",
    "aten.amax(%x, [0])": "max",
    "aten.amin(%x, [0])": "min",
    "aten.any.dim(%mask, 0)": "max",
    "aten.sum.dim_IntList(%x, [1])": "",
    "aten.mm(%x, %w)": "",
    "aten.slice.Tensor(%c, 0, 0, |N|)": "",
}


@pytest.mark.parametrize(("call", "share"), CONTRACTIONS.items(), ids=CONTRACTIONS)
def test_a_contraction_names_the_all_reduce_that_completes_it(call: str, share: str) -> None:
    program = parse_program(f"{HEAD}%result: f32[] = {call}\nreturn result 0 = %result\n")
    node = program.returned[0]
    node.meta["type"] = infer(node, program.spaces)
    assert contracted(node, node.meta["type"]) == bool(share)
    if share:
        assert TABLE[node.target].contracts == share


def test_a_filter_is_entered_once() -> None:
    lines = "%a: i64[S1] = sarc.select_rows(%mask)\n%b: i64[S1] = sarc.select_rows(%mask)\n"
    program = parse_program(HEAD + lines.replace("S1", "N") + "return result 0 = %a\nreturn result 1 = %b\n")
    first, second = (infer(node, program.spaces) for node in program.returned)
    assert first == second
    assert program.spaces["S1"].parents == ("N",) and program.spaces["S1"].mask == "mask"


def test_every_rule_says_in_words_what_it_does() -> None:
    for target, definition in [*TABLE.items(), ("pointwise", POINTWISE)]:
        assert definition.layout.__module__ in (layout_rules.__name__, dialect_rules.__name__)
        assert len(definition.doc) > 10, target
        assert definition.contracts in ("", "sum", "max", "min")


def test_every_operator_of_the_table_exists_and_alters_nothing() -> None:
    """Sums in place stand in a part's programs alone, and only on products of their own (`verify`)."""
    for target, definition in TABLE.items():
        assert isinstance(target, torch._ops.OpOverload)
        if target in (torch.ops.aten.addmm_.default, MM_OVER):
            assert definition.stages == ("data", "forward", "backward")
        else:
            assert not target._schema.is_mutable, target
