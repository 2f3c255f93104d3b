"""The sparse convolution as one Triton kernel; importing this module imports Triton.

An implicit GEMM (as in CUTLASS, and for sparse data in spconv 2 and TorchSparse++): no pair of voxels is gathered into
memory of its own and nothing is added atomically. Each program makes some rows of the output whole.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 64
# What `tl.dot` takes at least, and what keeps the sums in registers.
_LEAST, _COLUMNS, _CHANNELS = 16, 64, 32


@triton.jit(do_not_specialize=["rows"])
def _kernel(  # type: ignore[no-untyped-def]
    features,
    kernel,
    neighbors,
    output,
    rows,
    inputs,
    outputs,
    offsets: tl.constexpr,
    blocks: tl.constexpr,
    rows_each: tl.constexpr,
    columns_each: tl.constexpr,
    channels_each: tl.constexpr,
    precision: tl.constexpr,
):
    row = (tl.program_id(0) * rows_each + tl.arange(0, rows_each)).to(tl.int64)
    column = tl.program_id(1) * columns_each + tl.arange(0, columns_each)
    total = tl.zeros((rows_each, columns_each), dtype=tl.float32)
    for offset in range(offsets):
        place = neighbors + offset * rows.to(tl.int64) + row
        neighbor = tl.load(place, mask=row < rows, other=-1).to(tl.int64)
        # Few voxels have all neighbors: often none of these rows has this one.
        if tl.max(neighbor, 0) >= 0:
            for block in range(blocks):
                channel = block * channels_each + tl.arange(0, channels_each)
                left = tl.load(
                    features + neighbor[:, None] * inputs + channel[None, :],
                    mask=(neighbor[:, None] >= 0) & (channel[None, :] < inputs),
                    other=0.0,
                )
                right = tl.load(
                    kernel + (offset * inputs + channel[:, None]) * outputs + column[None, :],
                    mask=(channel[:, None] < inputs) & (column[None, :] < outputs),
                    other=0.0,
                )
                total = tl.dot(left, right, total, input_precision=precision)
    tl.store(
        output + row[:, None] * outputs + column[None, :],
        total.to(output.dtype.element_ty),
        mask=(row[:, None] < rows) & (column[None, :] < outputs),
    )


def implicit_gemm(features: Tensor, kernel: Tensor, neighbors: Tensor) -> Tensor:
    """Return [M, out], for each row m the sum over k of `features[neighbors[k, m]] @ kernel[k]`; -1 adds nothing.

    features: [N, in], kernel: [K, in, out], both float32, bfloat16 or float16; neighbors: int32 [K, M]

    Sums are float32 whatever the type. Products of float32 are exact unless torch may use TF32 for matrix products. One
    launch, and the same bits every time.
    """
    offsets, rows = neighbors.shape
    inputs, outputs = kernel.shape[1:]
    output = features.new_empty(rows, outputs)
    if not output.numel():
        return output
    channels = min(_CHANNELS, max(_LEAST, triton.next_power_of_2(inputs)))
    columns = min(_COLUMNS, max(_LEAST, triton.next_power_of_2(outputs)))
    grid = triton.cdiv(rows, _ROWS), triton.cdiv(outputs, columns)
    launch: Any = _kernel[grid]
    with torch.cuda.device_of(features):
        launch(
            features.contiguous(),
            kernel.contiguous(),
            neighbors,
            output,
            rows,
            inputs,
            outputs,
            offsets=offsets,
            blocks=triton.cdiv(inputs, channels),
            rows_each=_ROWS,
            columns_each=columns,
            channels_each=channels,
            precision="tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        )
    return output
