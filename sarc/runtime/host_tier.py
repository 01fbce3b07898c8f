"""HostTier: tables of a GPU that wait in the CPU's memory while other parts of the process run.

Parts of one process take turns, and one that waits for rows of others needs none of its tables. They leave the GPU
then, and come back one by one, each for the first instruction that names it: so the GPU holds what one part works with,
and what the backward pass needs of the forward pass lies in the CPU's memory in between. Rows that all peers exchange
at once are packed into the CPU's memory as well.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

import torch
from torch import Tensor

SMALLEST = 1 << 20


class HostTier:
    """Moves storages between a device and the CPU; values that share one keep sharing it.

    Args:
        smallest: bytes of the smallest storage that is worth moving.

    Attributes:
        alone: whether the process has one part, whose tables nobody makes room for: then only what is kept between the
            passes waits.
    """

    def __init__(self, smallest: int = SMALLEST):
        self.smallest, self.alone = smallest, False

    def holds(self, value: Tensor) -> bool:
        """Whether a value waits here."""
        return value.device.type == "cpu"

    def empty(self, nbytes: int) -> Tensor:
        """Uninitialised memory here, uint8 [nbytes], that copies of a GPU reach without a detour."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())

    def send(self, env: dict[str, Any], names: Iterable[str], stay: Container[int] = ()) -> None:
        """Replace the named values by ones that wait here, but those in the storages `stay` (see `place_of`)."""
        wanted = [v for name in names for v in _tensors(env[name]) if not self.holds(v)]
        places = {place_of(v) for v in wanted if v.untyped_storage().nbytes() >= self.smallest}
        _replace(env, {place for place in places if place not in stay}, self._sent)

    def bring(self, env: dict[str, Any], names: Iterable[str], device: torch.device) -> None:
        """Replace the named values, and those that share their memory, by ones on the device."""
        places = {place_of(v) for name in names for v in _tensors(env.get(name)) if self.holds(v) and v.numel()}
        if places:
            _replace(env, places, lambda flat: self._brought(flat, device))

    def copy(self, value: Tensor, device: torch.device) -> Tensor:
        """A value that waits here, on the device; it stays here too."""
        return self._brought(value, device)

    def _sent(self, flat: Tensor) -> Tensor:
        return self.empty(flat.numel()).copy_(flat)

    def _brought(self, flat: Tensor, device: torch.device) -> Tensor:
        return flat.to(device, non_blocking=True)


def place_of(value: Tensor) -> int:
    """The address of a value's storage."""
    return value.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterable[Tensor]:
    """The tensors of a value: itself, or those of the several results of a call."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _replace(env: dict[str, Any], places: set[int], moved: Callable[[Tensor], Tensor]) -> None:
    """Move the storages at `places`, uint8 [bytes] each, and look at the copies in the same way as at the originals."""
    made: dict[int, torch.UntypedStorage] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(copied(each) for each in value)
        if not isinstance(value, Tensor) or place_of(value) not in places:
            return value
        place, storage = place_of(value), value.untyped_storage()
        if place not in made:
            flat = torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage, 0, (storage.nbytes(),), (1,))
            made[place] = moved(flat).untyped_storage()
        target = made[place]
        empty = torch.empty(0, dtype=value.dtype, device=target.device)
        return empty.set_(target, value.storage_offset(), value.size(), value.stride())

    for name, value in env.items():
        env[name] = copied(value)
