"""Host buffers from which a step's tensors are copied to the device without waiting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def host_buffer(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an empty tensor on the host; for a GPU in pinned memory, from where `.to(…, non_blocking=True)` returns
    at once. The memory is not used for anything else before the copy is done."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")
