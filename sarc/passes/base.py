"""What every pass shares: building typed graphs, common subexpressions, dead code.

merge-common and remove-dead keep programs small: equal calls become one, calls nobody reads go.

Before:
    program step
    space N = nodes
    %x: f32[N, 4] = input arg x
    %a: f32[N, 4] = aten.relu(%x)   # model.py:7
    %b: f32[N, 4] = aten.relu(%x)   # model.py:8
    %c: f32[N, 4] = aten.exp(%x)   # model.py:9
    %d: f32[N, 4] = aten.add.Tensor(%a, %b)   # model.py:10
    return result 0 = %d
After:
    program step
    space N = nodes
    %x: f32[N, 4] = input arg x
    %a: f32[N, 4] = aten.relu(%x)   # model.py:7
    %d: f32[N, 4] = aten.add.Tensor(%a, %a)   # model.py:10
    return result 0 = %d
Needs a graph of its own (both work in place); gives one in which no two calls but random ones are equal.
Either does nothing, and says so, when no two calls are equal or every call is read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

import torch
import torch.fx as fx

from sarc.ir.dialect import UNIFORM
from sarc.ir.ops import infer, size_of
from sarc.ir.program import remove_dead, type_of
from sarc.ir.space import Dim, Size, Spaces

aten = torch.ops.aten

RANDOM = {
    aten.bernoulli.p, aten.bernoulli.default, aten.rand.default, aten.rand_like.default, aten.randn.default,
    aten.randn_like.default, aten.uniform.default, aten.normal_functional.default, aten.exponential.default,
    aten.native_dropout.default, aten.randint.default, aten.randint.low, aten.randint_like.default,
    aten.randperm.default,
    aten.multinomial.default, aten.rrelu_with_noise_functional.default, aten.geometric.default, aten.log_normal.default,
    aten.normal.float_float, aten.normal.Tensor_Tensor, aten.poisson.default,
}  # fmt: skip


class Builder:
    """Emits typed calls into a graph, inheriting the source location of the node being rewritten."""

    def __init__(self, graph: fx.Graph, spaces: Spaces):
        self.graph, self.spaces = graph, spaces
        self.loc = ""

    def call(self, target: Callable, *args, **kwargs) -> fx.Node:
        """Append `target(*args, **kwargs)`; its type is inferred from the op table."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta["loc"] = self.loc
        node.meta["type"] = infer(node, self.spaces)
        return node

    def align(self, value: fx.Node, rank: int) -> fx.Node:
        """`value` with axes of length one in front, to stand at the right of `rank` axes as broadcasting has it."""
        for _ in range(rank - len(type_of(value).dims)):
            value = self.call(aten.unsqueeze.default, value, 0)
        return value

    def expand(self, value: fx.Node, dims: tuple[Dim, ...]) -> fx.Node:
        """`value` broadcast to `dims`; itself when it has them."""
        if type_of(value).dims == dims:
            return value
        return self.call(aten.expand.default, value, self.shape(dims))

    def reshape(self, value: fx.Node, dims: tuple[Dim, ...]) -> fx.Node:
        """`value` in the shape `dims`; itself when it has it."""
        if type_of(value).dims == dims:
            return value
        return self.call(aten.reshape.default, value, self.shape(dims))

    def shape(self, dims: tuple[Dim, ...]) -> list[Size | int]:
        """The operand that stands for a shape."""
        return [size_of(dim, self.spaces) for dim in dims]


# By operator, what may be made of a call of it: an equal value, or None where the rule does not fit.
Rules = Mapping[object, tuple[Callable[[fx.Node, Builder], fx.Node | None], ...]]


def infer_types(graph: fx.Graph, spaces: Spaces) -> None:
    """Type every call of `graph`, whose placeholders are typed."""
    for node in graph.nodes:
        if node.op == "call_function":
            node.meta["type"] = infer(node, spaces)


def merge_common(graph: fx.Graph, on_merge: Callable[[fx.Node, fx.Node], None] | None = None) -> bool:
    """Common subexpression elimination: a call equal to an earlier one is replaced by it. Random calls never merge."""
    seen: dict[object, fx.Node] = {}
    changed = False
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target in RANDOM:
            continue
        key = (node.target, _key(node.args), _key(node.kwargs))
        earlier = seen.setdefault(key, node)
        if earlier is not node:
            if on_merge is not None:
                on_merge(earlier, node)
            node.replace_all_uses_with(earlier)
            graph.erase_node(node)
            changed = True
    return changed


def renumbered(graph: fx.Graph) -> fx.Graph:
    """A copy whose calls are named by their operators and numbered in order."""
    made = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            operands = fx.map_arg((node.args, dict(node.kwargs)), env.__getitem__)
            env[node] = made.call_function(node.target, *operands)
            env[node].meta = dict(node.meta)
        else:
            env[node] = made.node_copy(node, env.__getitem__)
    return made


def tidy(graph: fx.Graph, spaces: Spaces) -> None:
    """merge-common and remove-dead on a graph whose filters are named by their masks."""

    def rename_masks(kept: fx.Node, merged: fx.Node) -> None:
        for space in list(spaces):
            if space.kind == "filter" and space.mask == merged.name:
                spaces.rename_mask(space.name, kept.name)

    merge_common(graph, rename_masks)
    remove_dead(graph)


def _key(tree):
    if isinstance(tree, (list, tuple)):
        return ("seq", *(_key(leaf) for leaf in tree))
    if isinstance(tree, dict):
        return ("map", *((k, _key(tree[k])) for k in sorted(tree)))
    if isinstance(tree, slice):
        return ("slice", _key(tree.start), _key(tree.stop), _key(tree.step))
    # 1, 1.0 and True are equal in Python but not as operands.
    return (type(tree).__name__, tree)


def is_random(node: fx.Node) -> bool:
    return node.target is UNIFORM


def is_getitem(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem
