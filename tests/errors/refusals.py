"""How a refusal is judged: its class and text against reviewed golden files, and that nothing of the user's changed.

A golden file holds one entry a case, "case: Class" and the message. In messages, "file.py:17" of a test file reads as
the source text of that line, so a test fails when its error points to another line than the reviewed one. Library line
numbers are left out: they change with the library. SARC_WRITE_GOLDEN=1 writes the files anew, for review.
"""

from __future__ import annotations

import linecache
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sarc
from sarc.errors import SarcError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden")
N, E, F = 37, 90, 4

_generator = torch.Generator().manual_seed(0)
EDGES = torch.randint(0, N, (2, E), generator=_generator)
X = torch.randn(N, F, generator=_generator, dtype=torch.float64)
PARTS = sarc.partition(EDGES, num_nodes=N, num_parts=3, method="contiguous")


class Switch(nn.Module):
    """A linear layer, then `step` (what is under test) while `broken`, else one aggregation over the edges."""

    def __init__(self, step: Callable[..., Any]):
        super().__init__()
        self.lin = nn.Linear(F, F, dtype=torch.float64)
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.drop = nn.Dropout(0.0)
        self.step = step
        self.broken = True

    def forward(self, x: Tensor, edge_index: Tensor, *rest: Any, **named: Any) -> Any:
        h = self.drop(self.lin(x) * self.scale)
        if self.broken:
            return self.step(h, edge_index, *rest, **named)
        return torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])


def check_refused(golden: str, case: str, step: Callable[..., Any], *rest: Any, **named: Any) -> None:
    """A model with `step` inside is refused as the golden file says, and works when the step is taken out again."""
    model = Switch(step)
    model.drop.eval()
    compiled = sarc.compile(model, PARTS)
    with nothing_lost(model):
        message = refusal(lambda: compiled(X, EDGES, *rest, **named))
    check_golden(golden, case, message)
    model.broken = False
    with torch.no_grad():
        torch.testing.assert_close(compiled(X, EDGES), model(X, EDGES), rtol=1e-12, atol=1e-12)


def check_equal(compiled: nn.Module, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """`compiled` gives the values and parameter gradients of `model`."""
    found = _results_and_gradients(compiled, model, args, kwargs)
    for a, b in zip(found, _results_and_gradients(model, model, args, kwargs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def _results_and_gradients(call: nn.Module, model: nn.Module, args: tuple, kwargs: dict) -> list[Tensor | None]:
    model.zero_grad()
    results = torch.utils._pytree.tree_leaves(call(*args, **kwargs))
    results = [r for r in results if isinstance(r, Tensor)]
    sum(r.sum() for r in results if r.requires_grad).backward()
    return [*results, *(p.grad for p in model.parameters())]


def refusal(call: Callable[[], Any]) -> SarcError:
    """The error of sarc that `call` ends in."""
    with pytest.raises(SarcError) as caught:
        call()
    return caught.value


def check_golden(golden: str, case: str, error: BaseException) -> None:
    """Compare the class and text of `error` with the entry `case` of a golden file."""
    path = GOLDEN / f"{golden}.txt"
    entries = _read(path)
    text = readable(str(error))
    if os.environ.get("SARC_WRITE_GOLDEN"):
        entries[case] = (type(error).__name__, text)
        _write(path, entries)
        return
    assert case in entries, f"{path.name} has no entry {case!r}: write it with SARC_WRITE_GOLDEN=1, then review it"
    assert (type(error).__name__, text) == entries[case]


def readable(message: str) -> str:
    """`message` with the source text for lines of the tests, and without library line numbers."""

    def source(match: re.Match[str]) -> str:
        path = Path(match[1])
        line = linecache.getline(str(path if path.is_absolute() else Path.cwd() / path), int(match[2])).strip()
        return f"<{path.name}: {line}>"

    message = re.sub(r"([\w./-]*tests/errors/\w+\.py):(\d+)", source, message)
    message = re.sub(r"((?:torch_geometric|dgl)/[\w/]+\.py):\d+", r"\1", message)
    return " ".join(message.replace(str(ROOT), "").split())


def _read(path: Path) -> dict[str, tuple[str, str]]:
    entries = {}
    for block in path.read_text().split("\n\n") if path.exists() else []:
        if block.strip():
            head, *lines = block.strip().splitlines()
            case, _, kind = head.rpartition(": ")
            entries[case] = (kind, " ".join(line.strip() for line in lines))
    return entries


def _write(path: Path, entries: dict[str, tuple[str, str]]) -> None:
    def block(case: str, kind: str, text: str) -> str:
        lines = textwrap.wrap(text, 116, break_long_words=False, break_on_hyphens=False)
        return "\n".join([f"{case}: {kind}", *(f"    {line}" for line in lines)])

    path.write_text("\n\n".join(block(case, *entry) for case, entry in sorted(entries.items())) + "\n")


@contextmanager
def nothing_lost(model: nn.Module) -> Iterator[None]:
    """Inside, the model's state and PyTorch's global state may change, but must be restored at the end."""
    before = _state(model)
    values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    yield
    assert _state(model) == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, values[name]), name


def _state(model: nn.Module) -> dict[str, Any]:
    """Identities and flags: of the module's tensors and attributes, and of what capture patches for a while."""
    state: dict[str, Any] = {
        "autograd.Function.apply": torch.autograd.Function.__dict__["apply"],
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "python dispatcher": torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.Python),
        "default dtype": torch.get_default_dtype(),
        "random state": torch.random.get_rng_state().sum().item(),
        "node meta": torch.fx.traceback.has_preserved_node_meta(),
        "relu": torch.nn.functional.relu,
    }
    state.update({f"parameter {n}": (id(p), p.requires_grad, p.grad is None) for n, p in model.named_parameters()})
    state.update({f"buffer {n}": id(b) for n, b in model.named_buffers()})
    for name, module in model.named_modules():
        state[f"module {name}"] = (id(module), module.training, sorted(vars(module)), sorted(module._forward_hooks))
    return state
