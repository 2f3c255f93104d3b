"""Sparse convolution on torchsparse 1.4 (CPU and CUDA) or 2.1 (CUDA): the one file that knows that library.

The two versions write coordinates differently. 1.4: (x, y, z, batch), multiples of the stride. 2.1: (batch, x, y, z),
divided by the stride. 1.4 has no gradients on the CPU, and there it takes all voxels for the first one's cloud; 2.1 has
neither bfloat16 nor float64, and drops voxels at the border unless it is told the extent.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from teachers.sparse.grid import BackendError
from teachers.sparse.level import Level, check_coordinates
from teachers.sparse.window import Window

# Origin, extent and the gap between clouds that torchsparse sees are multiples of this, so that blocks of every stride
# up to it begin and end where ours do, and no window reaches from one cloud into the next.
_ALIGNMENT = 1 << 10
_INSTALL = "install torchsparse 1.4, compiled as docker/Dockerfile does, or use that image"


@cache
def _load() -> tuple[Any, str]:
    """Return the torchsparse module and "", or None and why it cannot be imported."""
    try:
        library = importlib.import_module("torchsparse")
        importlib.import_module("torchsparse.nn.functional")
    # 2.1 asks for the GPU while it is imported: without one this is a RuntimeError or an AssertionError.
    except (ImportError, RuntimeError, AssertionError, OSError) as error:
        return None, " ".join(str(error).split())
    return library, ""


def _is_divided(library: Any) -> bool:
    """Return whether coordinates are written the way of 2.x."""
    return int(library.__version__.split(".")[0]) >= 2


class TorchsparseBackend:
    """The backend that is fastest on a GPU, where it is installed."""

    name = "torchsparse"

    def obstacle(self, device: torch.device) -> str | None:
        """Return why torchsparse cannot run on `device`, and what would help; None if it can."""
        library, problem = _load()
        if library is None:
            return f"torchsparse cannot be imported ({problem}); {_INSTALL}"
        if device.type == "cpu" and _is_divided(library):
            return f"torchsparse {library.__version__} runs on CUDA alone; move the model there"
        if device.type not in ("cpu", "cuda"):
            return f"torchsparse runs on CPU and CUDA, not on {device.type}"
        if device.type == "cuda" and not hasattr(library.backend, "hash_query_cuda"):
            return f"torchsparse {library.__version__} was built for the CPU alone; build it with FORCE_CUDA=1"
        return None

    def open(self, coordinates: Tensor) -> TorchsparseGrid:
        """Start a pass on int32 [N, 4] (batch, x, y, z). Raises CoordinateError if they are not voxels, each once."""
        library, problem = _load()
        if library is None:
            raise BackendError(f"torchsparse cannot be imported ({problem}); {_INSTALL}")
        return TorchsparseGrid(library, coordinates)


class TorchsparseGrid:
    """The coordinates and kernel maps of one pass, kept by torchsparse; this class translates."""

    def __init__(self, library: Any, coordinates: Tensor) -> None:
        check_coordinates(coordinates)
        self._library = library
        self._divided = _is_divided(library)
        self._levels = {1: Level.of(coordinates)}
        # The clouds of a batch are laid side by side along x: 1.4 confuses them on the CPU if told apart by number.
        self._origin = coordinates.new_zeros(4)
        blocks = [1, 1, 1]
        clouds = 1
        if len(coordinates):
            lowest = torch.div(coordinates.amin(0), _ALIGNMENT, rounding_mode="floor") * _ALIGNMENT
            self._origin[1:] = lowest[1:]
            highest = (coordinates - self._origin).amax(0)
            clouds = int(highest[0]) + 1
            blocks = (torch.div(highest[1:], _ALIGNMENT, rounding_mode="floor") + 1).tolist()
        self._pitch = (blocks[0] + 1) * _ALIGNMENT
        self._extent = (1, clouds * self._pitch, blocks[1] * _ALIGNMENT, blocks[2] * _ALIGNMENT)
        first = self._tensor(coordinates.new_zeros(len(coordinates), 1), self._to_theirs(coordinates), 1)
        self._cache = first._caches if self._divided else first
        self._cache.cmaps[first.stride] = (first.coords, first.spatial_range) if self._divided else first.coords

    def level(self, stride: int) -> Level:
        """Return the voxels at `stride`, in the order that torchsparse keeps them."""
        if stride not in self._levels:
            self._levels[stride] = Level.of(self._from_theirs(self._stored(stride), stride))
        return self._levels[stride]

    def convolve(self, features: Tensor, kernel: Tensor, stride: int, window: Window) -> Tensor:
        """Return [M, out]: features [N, in] at `stride`, through kernel [K, in, out].

        Raises BackendError for what this version of torchsparse cannot do.
        """
        self._check(features, kernel)
        if window.transposed:
            fine = (window.output_stride(stride),) * 3
            if (fine, (window.size,) * 3, (window.stride,) * 3, (1, 1, 1)) not in self._cache.kmaps:
                raise BackendError(
                    f"nothing to transpose: no {window.size}³ convolution has led from stride {fine[0]} to {stride}"
                )
        x = self._tensor(features, self._stored(stride), stride)
        options: dict[str, Any] = {}
        if self._divided:
            # 2.1 files the hash table of a strided convolution under the finer stride, where it does not belong.
            self._cache.hashmaps.clear()
            x._caches = self._cache
            options["training"] = torch.is_grad_enabled()
            # It would round float32 to TF32 wherever the GPU can, whatever torch has been told.
            allowed = torch.backends.cuda.matmul.allow_tf32 and features.is_cuda
            self._library.backends.allow_tf32 = allowed and torch.cuda.get_device_capability(features.device) >= (8, 0)
        else:
            x.cmaps, x.kmaps = self._cache.cmaps, self._cache.kmaps
        y = self._library.nn.functional.conv3d(
            x, kernel, kernel_size=window.size, stride=window.stride, transposed=window.transposed, **options
        )
        result: Tensor = y.feats
        return result

    def _check(self, features: Tensor, kernel: Tensor) -> None:
        version = self._library.__version__
        wants_gradients = torch.is_grad_enabled() and (features.requires_grad or kernel.requires_grad)
        if features.device.type == "cpu" and wants_gradients:
            raise BackendError(
                f"torchsparse {version} has no gradients on the CPU; wrap the call in torch.no_grad() or use 'plain'"
            )
        if features.device.type == "cuda" and features.dtype not in (torch.float32, torch.float16):
            raise BackendError(f"torchsparse {version} takes float32 and float16, not {features.dtype}; use 'plain'")

    def _tensor(self, features: Tensor, coordinates: Tensor, stride: int) -> Any:
        if not self._divided:
            return self._library.SparseTensor(features, coordinates, stride)
        extent = (1, *(side // stride for side in self._extent[1:]))
        return self._library.SparseTensor(features, coordinates, stride, spatial_range=extent)

    def _stored(self, stride: int) -> Tensor:
        stored = self._cache.cmaps.get((stride,) * 3)
        if stored is None:
            raise BackendError(f"this pass has no voxels of stride {stride}; no strided convolution has led there")
        coordinates: Tensor = stored[0] if self._divided else stored
        return coordinates

    def _to_theirs(self, coordinates: Tensor) -> Tensor:
        """Return voxels of stride 1, where both versions write the same numbers, in another order."""
        moved = coordinates - self._origin
        moved[:, 1] += moved[:, 0] * self._pitch
        moved[:, 0] = 0
        return moved if self._divided else moved[:, [1, 2, 3, 0]].contiguous()

    def _from_theirs(self, coordinates: Tensor, stride: int) -> Tensor:
        ours = coordinates.int() * stride if self._divided else coordinates[:, [3, 0, 1, 2]].int()
        ours[:, 0] = torch.div(ours[:, 1], self._pitch, rounding_mode="floor")
        ours[:, 1] -= ours[:, 0] * self._pitch
        return ours + self._origin
