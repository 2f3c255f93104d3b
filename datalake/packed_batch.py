"""A batch of samples that travels between processes as one tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

# Every tensor begins at a multiple of this: enough for any type, and whole lines of a cache.
_ALIGNMENT = 64


class PackedBatch(list[Any]):
    """Samples or frames whose tensors share one piece of memory on their way to another process, where a list arrives.

    One by one each tensor costs a file descriptor for as long as it lives, and a connection between the processes:
    some two hundred in a batch of sixteen with points.
    """

    def __reduce__(self) -> Any:
        """Return how to make the list again."""
        places: dict[int, _Place] = {}
        tensors: list[torch.Tensor] = []
        end = 0

        def place(tensor: torch.Tensor) -> _Place:
            nonlocal end
            # The images of one frame share its points.
            if id(tensor) not in places:
                places[id(tensor)] = _Place(end, tensor.nbytes, tensor.dtype, tuple(tensor.shape))
                tensors.append(tensor)
                end = -(-(end + tensor.nbytes) // _ALIGNMENT) * _ALIGNMENT
            return places[id(tensor)]

        packed = [_exchange(sample, torch.Tensor, place) for sample in self]
        memory = torch.empty(end, dtype=torch.uint8).share_memory_()
        for tensor in tensors:
            places[id(tensor)].of(memory).copy_(tensor)
        return _unpacked, (memory, packed)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in the memory."""

    start: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def of(self, memory: torch.Tensor) -> torch.Tensor:
        return memory[self.start : self.start + self.size].view(self.dtype).view(self.shape)


def _unpacked(memory: torch.Tensor, packed: list[Any]) -> list[Any]:
    made: dict[int, torch.Tensor] = {}

    def tensor(place: _Place) -> torch.Tensor:
        return made.setdefault(id(place), place.of(memory))

    return [_exchange(sample, _Place, tensor) for sample in packed]


def _exchange(value: Any, kind: type, other: Callable[[Any], Any]) -> Any:
    """Return the value, or a dataclass with all it holds, with `other(part)` for every part of this kind."""
    if isinstance(value, kind):
        return other(value)
    if isinstance(value, tuple):
        return tuple(_exchange(each, kind, other) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{each.name: _exchange(getattr(value, each.name), kind, other) for each in fields(value)}
        )
    return value
