"""From the host to a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor on the device.

    To a GPU it goes through pinned memory: an ordinary copy would wait until all that was asked of the GPU before is
    done.
    """
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def joined_on_device(parts: Sequence[Tensor], device: torch.device, dim: int = 0) -> Tensor:
    """Return host tensors of one type, put together along `dim`, on the device: each is copied once on the host."""
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    pinned = torch.empty(shape, dtype=parts[0].dtype, pin_memory=device.type == "cuda")
    return torch.cat(list(parts), dim, out=pinned).to(device, non_blocking=True)
