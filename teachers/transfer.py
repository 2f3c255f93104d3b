"""From the host to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor on the device.

    To a GPU it goes through pinned memory: an ordinary copy would wait until all that was asked of the GPU before is
    done.
    """
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
