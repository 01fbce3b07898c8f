"""Online softmax: where two sweeps over a row can be one (Milakov and Gimelshein, arXiv 1805.02867, section 3).

A row's maximum is folded in one sweep; in the next, values are exponentials of scores less that maximum, and their
sums. In one sweep the maximum so far takes its place: where it grows, sums so far are multiplied by the exponential of
the old one less the new one. That holds for every sum of products of one such exponential with what does not depend
on the maximum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.fx as fx

from sarc.codegen.body import NARROW, Body, width
from sarc.codegen.value import VIEWS
from sarc.ir.edge_program import fold_to_rows, take_rows

aten = torch.ops.aten


@dataclass(frozen=True)
class Online:
    """Two sweeps that can be one.

    Attributes:
        sweep: the first of them.
        tops: the maxima that it folds and the other one shifts by.
        exponentials: for each exponential, its shift as edges read it: a maximum, or where(.., maximum, ..) of the row.
        scaled: values of edges with one exponential as a factor: themselves, and what is made of them.
        folds: the row's sums of such values, which grow with the shift.
    """

    sweep: int
    tops: tuple[fx.Node, ...]
    exponentials: Mapping[fx.Node, fx.Node]
    scaled: frozenset[fx.Node]
    folds: tuple[fx.Node, ...]

    @property
    def shifts(self) -> list[fx.Node]:
        """Each shift once, in order."""
        return list(dict.fromkeys(self.exponentials.values()))


def find_online(body: Body) -> dict[int, Online]:
    """The pairs of sweeps of a row that can be one, by the first of each."""
    found: dict[int, Online] = {}
    for sweep in range(max(body.passes.values(), default=0)):
        if sweep - 1 not in found and (pair := _pair(body, sweep)):
            found[sweep] = pair
    return found


def _pair(body: Body, sweep: int) -> Online | None:
    exponentials = _exponentials(body, sweep)
    arguments = {n.args[0] for n in exponentials}
    scaled: dict[fx.Node, None] = {}
    for node in body.nodes:
        if node in body.in_row or body.passes[node] != sweep + 1 or node in arguments:
            continue
        if node in exponentials:
            scaled[node] = None
            continue
        operands = node.all_input_nodes
        unfinished = any(n in body.in_row and body.passes[n] > sweep for n in operands)
        if unfinished or any(n in arguments for n in operands):
            return None
        if any(n in scaled for n in operands):
            if not _is_product(node, [n for n in operands if n in scaled]):
                return None
            scaled[node] = None
    folds = [n for n in body.nodes if n.target is fold_to_rows and n.args[0] in scaled and body.passes[n] == sweep + 2]
    written = any(body.roots[k] in scaled for k in body.results)
    if not folds or written or any(n.args[3] != "sum" for n in folds):
        return None
    tops = dict.fromkeys(_top(n.args[0]) for n in exponentials.values())
    return Online(sweep, tuple(n for n in tops if n), exponentials, frozenset(scaled), tuple(folds))


def _exponentials(body: Body, sweep: int) -> dict[fx.Node, fx.Node]:
    """exp(score - shift) of the second sweep, where the shift is made of the maximum of that score."""
    found: dict[fx.Node, fx.Node] = {}
    for node in body.nodes:
        if node.target is not aten.exp.default or node in body.in_row or body.passes[node] != sweep + 1:
            continue
        argument = node.args[0]
        if argument.target is not aten.sub.Tensor or argument.kwargs or argument in body.in_row:
            continue
        score, shift = argument.args
        if not isinstance(shift, fx.Node) or shift.target is not take_rows:
            continue
        top = _top(shift.args[0])
        folded = top is not None and body.passes[top] == sweep + 1 and top.args[0] is score and width(top) <= NARROW
        if folded and all(n.target is aten.exp.default for n in body.readers(argument)):
            found[node] = shift
    return found


def _top(node: fx.Node) -> fx.Node | None:
    """The maximum that a shift of the row is: itself, or chosen where a condition of the row holds."""
    if node.target is aten.where.self:
        condition, chosen, other = node.args
        known = [n for n in (condition, other) if isinstance(n, fx.Node)]
        if all(n.op == "placeholder" or n.target is aten.full.default for n in known):
            return _top(chosen)
    return node if node.target is fold_to_rows and node.args[3] == "amax" else None


def _is_product(node: fx.Node, scaled: list[fx.Node]) -> bool:
    """Whether a value is one scaled value times what is none, or a view of one."""
    if len(scaled) != 1 or sum(n is scaled[0] for n in node.args) != 1:
        return False
    if node.target in VIEWS or node.target in (aten.mul.Tensor, aten.neg.default):
        return True
    return node.target is aten.div.Tensor and node.args[0] is scaled[0]
