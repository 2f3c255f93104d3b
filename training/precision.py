"""In which number format a network is trained where."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Return whether to train under bfloat16 autocast.

    auto: where the hardware multiplies bfloat16 itself. Elsewhere it is emulated and slower than float32.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported()) or bool(torch.cpu._is_amx_tile_supported())


def allow_tf32(allowed: bool) -> None:
    """Say whether a GPU may round the factors of float32 products to TF32 (10 bits): faster, 1e-3 apart from a CPU.

    It holds for matrix products, for convolutions (which torch rounds by default) and for the sparse backends, which
    go by torch's setting for matrix products. No CPU rounds so.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
