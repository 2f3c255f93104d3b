"""The arithmetic of a sparse convolution, given its kernel map: gather, multiply, add."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from teachers.sparse.kernel_map import KernelMap

# Rows that are gathered, multiplied and added in one go: few enough to stay in a core's cache on the way, many
# enough to keep the matrix product busy. A GPU has other needs: there a whole group goes at once.
_CPU_ROWS = 8192


def pair_matmul(features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Return [output_rows, out], the sum over all pairs of `features[input] @ kernel[offset]`.

    features: [input_rows, in], kernel: [K, in, out], both of one floating dtype, or any under autocast. Sums of
    float16 and bfloat16 products are taken in float32. Gradients flow to both; second derivatives do not exist.
    Memory: besides the result, and for gradients the arguments, only blocks of a few thousand rows.
    """
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, kernel = features.to(dtype), kernel.to(dtype)
    result: Tensor = _PairMatmul.apply(features, kernel, kernel_map)
    return result


class _PairMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(features, kernel)
        ctx.kernel_map = kernel_map
        return _gather_multiply_add(features, kernel, kernel_map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, kernel = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_features, to_kernel, _ = ctx.needs_input_grad
        return (
            _gather_multiply_add(gradient, kernel.transpose(1, 2), ctx.kernel_map.reversed()) if to_features else None,
            _kernel_gradient(features, gradient, kernel, ctx.kernel_map) if to_kernel else None,
            None,
        )


def _gather_multiply_add(features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    low_precision = features.dtype in (torch.float16, torch.bfloat16)
    shape = (kernel_map.output_rows, kernel.shape[2])
    if kernel_map.identity is not None:
        total = torch.mm(features, kernel[kernel_map.identity])
        total = total.float() if low_precision else total
    else:
        total = features.new_zeros(shape, dtype=torch.float32 if low_precision else features.dtype)
    block = _block_rows(kernel_map, features.device)
    gathered = features.new_empty(block, features.shape[1])
    product = features.new_empty(block, shape[1])
    for index, start, stop in _blocks(kernel_map, block):
        rows = gathered[: stop - start]
        result = product[: stop - start]
        torch.index_select(features, 0, kernel_map.inputs[start:stop], out=rows)
        torch.mm(rows, kernel[index], out=result)
        total.index_add_(0, kernel_map.outputs[start:stop], result.float() if low_precision else result)
    return total.to(features.dtype)


def _kernel_gradient(features: Tensor, gradient: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    low_precision = features.dtype in (torch.float16, torch.bfloat16)
    total = torch.zeros_like(kernel, dtype=torch.float32 if low_precision else kernel.dtype)
    if kernel_map.identity is not None:
        total[kernel_map.identity] = torch.mm(features.t(), gradient)
    block = _block_rows(kernel_map, features.device)
    for index, start, stop in _blocks(kernel_map, block):
        rows = features.index_select(0, kernel_map.inputs[start:stop])
        total[index] += torch.mm(rows.t(), gradient.index_select(0, kernel_map.outputs[start:stop]))
    return total.to(kernel.dtype)


def _block_rows(kernel_map: KernelMap, device: torch.device) -> int:
    largest = max((count for _, count in kernel_map.groups), default=0)
    return min(largest, _CPU_ROWS) if device.type == "cpu" else largest


def _blocks(kernel_map: KernelMap, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield (kernel index, first pair, last pair + 1) of blocks of at most `rows` pairs."""
    start = 0
    for index, count in kernel_map.groups:
        stop = start + count
        for first in range(start, stop, max(rows, 1)):
            yield index, first, min(first + rows, stop)
        start = stop
