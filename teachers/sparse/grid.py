"""What a backend has to offer: the one interface between the layers and the libraries."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from teachers.sparse.level import Level
from teachers.sparse.window import Window


class Grid(Protocol):
    """The occupied voxels of one network pass at every stride, with all that has been found out about them.

    Tensors of one pass share one grid, so that coordinates and kernel maps are made once.
    """

    def level(self, stride: int) -> Level:
        """Return the voxels at `stride`. Raises BackendError where no convolution has led there."""
        ...

    def convolve(self, features: Tensor, kernel: Tensor, stride: int, window: Window) -> Tensor:
        """Return [M, out] at `window.output_stride(stride)`: features [N, in] at `stride`, through kernel [K, in, out].

        Raises BackendError where a transposed window leads to a stride that the pass has not come from.
        """
        ...


class Backend(Protocol):
    """A library that can convolve."""

    name: str

    def obstacle(self, device: torch.device) -> str | None:
        """Return why it cannot run on `device`, or None if it can."""
        ...

    def open(self, voxels: Tensor | Level) -> Grid:
        """Start a pass on int32 [N, 4] (batch, x, y, z), the voxels of stride 1, each once; or on their level."""
        ...


class BackendError(RuntimeError):
    """A backend cannot do what was asked of it."""
