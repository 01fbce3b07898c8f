"""Program: a torch.fx graph whose every value has a type, a source location and a place in a signature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch.fx as fx
from torch import Tensor

from sarc.ir.dialect import SELECT_ROWS
from sarc.ir.space import Size, Spaces, ValueType


@dataclass(frozen=True)
class Input:
    """Where a placeholder's value comes from.

    Attributes:
        kind: "param" | "buffer" | "arg" (a tensor of the user's call) | "constant" | "rng" (seed and step) |
            "bound" (made by the structure program) | "saved" (by the forward program) | "tangent" (of an output).
        name: parameter or buffer name, argument path, or the name of the value it stands for.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Output:
    """Where a returned value goes.

    Attributes:
        kind: "result" (of the user's call) | "buffer" (new value of a buffer) | "grad" (of an input) | "saved" |
            "bound".
        name: index of the result, buffer name, input name, or value name.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Program:
    """One stage of a model's program.

    Attributes:
        graph: torch.fx graph; `node.meta["type"]` is a `ValueType` (a tuple of them for several results),
            `node.meta["loc"]` the user's "file:line" or "".
        spaces: the spaces its types name.
        inputs: one for each placeholder, in order.
        outputs: one for each returned value, in order.
        stage: "captured", "raised", "structure", "step", "joint", "forward", "backward", ...
        constants: tensors the model holds that are neither parameters nor buffers.
    """

    graph: fx.Graph
    spaces: Spaces
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    stage: str
    constants: dict[str, Tensor] = field(default_factory=dict)

    @property
    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def returned(self) -> tuple[fx.Node, ...]:
        return tuple(output_node(self.graph).args[0])

    def copy(self) -> Program:
        """A program with a graph of its own: what a pass works on."""
        graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            env[node] = graph.node_copy(node, env.__getitem__)
        return replace(self, graph=graph, spaces=self.spaces.copy())

    def at(self, stage: str) -> Program:
        return replace(self, stage=stage)


def output_node(graph: fx.Graph) -> fx.Node:
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def type_of(node: fx.Node) -> ValueType:
    """The type of a one-tensor value."""
    found = node.meta["type"]
    if not isinstance(found, ValueType):
        raise TypeError(f"%{node.name} is no single tensor: {found}")
    return found


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """The operands that are values, once each, in order."""
    return list(node.all_input_nodes)


def map_sizes(tree, change):
    """`tree` of fx arguments with every `Size` replaced by `change(size)`."""
    if isinstance(tree, Size):
        return change(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_sizes(leaf, change) for leaf in tree)
    if isinstance(tree, dict):
        return {key: map_sizes(leaf, change) for key, leaf in tree.items()}
    return tree


def remove_dead(graph: fx.Graph) -> bool:
    """Erase values nobody uses (placeholders stay, and selections: they define spaces); returns whether any was."""
    changed = False
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and node.target is not SELECT_ROWS:
            graph.erase_node(node)
            changed = True
    return changed


def select_inputs(program: Program, keep: Iterable[fx.Node]) -> Program:
    """`program` without the placeholders that are not in `keep` (they must be unused); alters the graph in place."""
    kept = set(keep)
    inputs = []
    for node, entry in zip(program.placeholders, program.inputs, strict=True):
        if node in kept:
            inputs.append(entry)
        else:
            program.graph.erase_node(node)
    return replace(program, inputs=tuple(inputs))
