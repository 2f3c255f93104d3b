"""Sparse convolution on Triton, which comes with torch for CUDA: nothing has to be compiled to install it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from teachers.sparse.grid import BackendError
from teachers.sparse.kernel_map import coarser_level
from teachers.sparse.level import Level, key_step
from teachers.sparse.level_maps import LevelMaps
from teachers.sparse.window import Window
from teachers.transfer import on_device

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _load(device_type: str) -> tuple[Any, str]:
    """Return the module of the kernel and "", or None and why it cannot run there."""
    try:
        module = importlib.import_module("teachers.sparse.implicit_gemm")
        one = torch.ones(1, 1, device=device_type)
        module.implicit_gemm(one, one[None], torch.zeros(1, 1, dtype=torch.int32, device=device_type))
    # Triton compiles on first use, with a C compiler for the host's part: that fails in as many ways as compilers do.
    except Exception as error:
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return module, ""


class TritonBackend:
    """The backend for a GPU."""

    name = "triton"

    def obstacle(self, device: torch.device) -> str | None:
        """Return why Triton cannot run on `device`; None if it can."""
        if device.type != "cuda" and not _is_interpreted():
            return "Triton compiles for GPUs alone; move the model there"
        return _load(device.type)[1] or None

    def open(self, voxels: Tensor | Level) -> TritonGrid:
        """Start a pass on int32 [N, 4] (batch, x, y, z). Raises CoordinateError if they are not voxels, each once."""
        device = (voxels.coordinates if isinstance(voxels, Level) else voxels).device.type
        module, problem = _load(device)
        if module is None:
            raise BackendError(f"Triton cannot run on {device}: {problem}; use 'plain'")
        return TritonGrid(module, voxels if isinstance(voxels, Level) else Level.of(voxels))


def _is_interpreted() -> bool:
    """Return whether Triton runs kernels in Python, on any device: TRITON_INTERPRET=1, for tests."""
    try:
        knobs = importlib.import_module("triton").knobs
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)


@dataclass(frozen=True, slots=True)
class _Neighbors:
    """Which of N input rows each of M output rows reads, and the other way round.

    read: int32 [K, M], for each kernel offset the input row, -1 where there is none
    back: int32 [K, N], for each kernel offset the output row that reads the input row under it, or -1
    """

    read: Tensor
    back: Tensor


class TritonGrid:
    """Levels and neighbors of one pass."""

    def __init__(self, module: Any, base: Level) -> None:
        self._module = module
        self._neighbors = LevelMaps(base, _submanifold, _strided)

    def level(self, stride: int) -> Level:
        """Return the voxels at `stride`."""
        return self._neighbors.level(stride)

    def convolve(self, features: Tensor, kernel: Tensor, stride: int, window: Window) -> Tensor:
        """Return [M, out]: features [N, in] at `stride`, through kernel [K, in, out]; float32, bfloat16 or float16."""
        device = features.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            features, kernel = features.to(dtype), kernel.to(dtype)
        if features.dtype not in _TYPES or kernel.dtype != features.dtype:
            raise BackendError(
                f"Triton's kernel takes features and weights both float32, bfloat16 or float16, not {features.dtype}"
                f" and {kernel.dtype}; use 'plain'"
            )
        neighbors = self._neighbors.find(stride, window)
        if window.transposed:
            neighbors = _Neighbors(neighbors.back, neighbors.read)
        result: Tensor = _Convolution.apply(features, kernel, neighbors, self._module.implicit_gemm)
        return result


def _submanifold(level: Level, stride: int, size: int) -> _Neighbors:
    """Return the neighbors under an odd kernel: all its columns are searched at once, the host waits for nothing."""
    reach = range(-(size // 2), size // 2 + 1)
    # x runs fastest, then y, then z, as in the kernel.
    steps = torch.tensor([key_step(x * stride, y * stride, reach[0] * stride) for y in reach for x in reach])
    found = level.find_columns(level.keys + on_device(steps, level.keys.device)[:, None], size, stride)
    read = found.flatten(0, 1).int()
    if level.rows is not None:
        in_order = torch.empty_like(read)
        in_order[:, level.rows] = read
        read = in_order
    # Whoever sees a voxel under an offset is seen by it under the opposite one.
    return _Neighbors(read, read.flip(0))


def _strided(level: Level, stride: int, size: int) -> tuple[Level, _Neighbors]:
    """Return the coarser level, and which voxels of the fine one lie where in its blocks."""
    coarse, parent, index = coarser_level(level, stride, size)
    row = torch.arange(len(level), dtype=torch.int32, device=parent.device)
    read = torch.full((size**3, len(coarse)), -1, dtype=torch.int32, device=parent.device)
    read[index, parent] = row
    back = torch.full((size**3, len(level)), -1, dtype=torch.int32, device=parent.device)
    back[index, row.long()] = parent.int()
    return coarse, _Neighbors(read, back)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, neighbors: _Neighbors, gemm: Any) -> Tensor:
        ctx.save_for_backward(features, kernel)
        ctx.neighbors, ctx.gemm = neighbors, gemm
        result: Tensor = gemm(features, kernel, neighbors.read)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        features, kernel = ctx.saved_tensors
        to_features, to_kernel, _, _ = ctx.needs_input_grad
        return (
            ctx.gemm(gradient, kernel.transpose(1, 2), ctx.neighbors.back) if to_features else None,
            _kernel_gradient(features, gradient, ctx.neighbors.read) if to_kernel else None,
            None,
            None,
        )


def _kernel_gradient(features: Tensor, gradient: Tensor, read: Tensor) -> Tensor:
    """Return [K, in, out]; one offset after the other, for all at once would take K times the features' memory."""
    # Minus one is the last row, which is there for the neighbors that are not.
    padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
    return torch.stack([padded[rows].t() @ gradient for rows in read.long()])
