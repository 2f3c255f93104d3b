"""Sparse convolution on torchsparse 1.4 (CPU and CUDA) or 2.1 (CUDA): the one file that knows that library.

The two versions write coordinates differently. 1.4: (x, y, z, batch), multiples of the stride. 2.1: (batch, x, y, z),
divided by the stride. 1.4 has no gradients on the CPU, and there it takes all voxels for the first one's cloud; 2.1 has
neither bfloat16 nor float64, and drops voxels at the border unless it is told the extent.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from teachers.sparse.grid import BackendError, Grid
from teachers.sparse.level import Level, check_coordinates
from teachers.sparse.window import Window

# Origin, extent and the gap between clouds that torchsparse sees are multiples of this, so that blocks of every stride
# up to it begin and end where ours do, and no window reaches from one cloud into the next. No larger than that, for 2.1
# counts the cells of the extent in 32 bits.
_ALIGNMENT = 1 << 6
# 2.1 keeps the cell of a strided convolution, of 2 x 2 x 2 voxels at least, as an int: what is beyond is dropped or
# becomes another cell, without a word.
_CELLS = 1 << 31
_VOXELS_A_CELL = 8
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

    def open(self, voxels: Tensor | Level) -> Grid:
        """Start a pass on int32 [N, 4] (batch, x, y, z). Raises CoordinateError if they are not voxels, each once."""
        library, problem = _load()
        if library is None:
            raise BackendError(f"torchsparse cannot be imported ({problem}); {_INSTALL}")
        return open_grid(library, voxels.coordinates if isinstance(voxels, Level) else voxels)


def open_grid(library: Any, coordinates: Tensor) -> Grid:
    """Start a pass with this torchsparse, in as many parts as it needs.

    Raises BackendError where not even one cloud fits, or where several parts are needed and clouds are not in order.
    """
    check_coordinates(coordinates)
    layout = _Layout.of(coordinates)
    at_once = layout.clouds_at_once
    if not _is_divided(library) or layout.clouds <= at_once:
        return TorchsparseGrid(library, coordinates, layout)
    if not at_once:
        raise BackendError(
            f"clouds of up to {' x '.join(map(str, layout.cloud))} voxels are more than torchsparse"
            f" {library.__version__} can count; use larger voxels, 'triton' or 'plain'"
        )
    return _SplitGrid(library, coordinates, at_once)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the clouds of a batch are laid side by side along x: 1.4 confuses them on the CPU if told apart by number.

    origin: int [4], what is subtracted from coordinates
    clouds: how many there are
    cloud: voxels along x, y and z that each takes, with a gap
    """

    origin: Tensor
    clouds: int
    cloud: tuple[int, int, int]

    @staticmethod
    def of(coordinates: Tensor) -> _Layout:
        origin = coordinates.new_zeros(4)
        if not len(coordinates):
            return _Layout(origin, 1, (2 * _ALIGNMENT,) * 3)
        origin[1:] = (torch.div(coordinates.amin(0), _ALIGNMENT, rounding_mode="floor") * _ALIGNMENT)[1:]
        last, *highest = (coordinates - origin).amax(0).tolist()
        # One block more than is occupied: windows find nothing beyond a cloud, and of a submanifold kernel 2.1 takes
        # the two outermost layers of the extent for one.
        x, y, z = ((side // _ALIGNMENT + 2) * _ALIGNMENT for side in highest)
        return _Layout(origin, last + 1, (x, y, z))

    @property
    def clouds_at_once(self) -> int:
        """How many 2.1 can count the cells of."""
        return (_CELLS - 1) // (math.prod(self.cloud) // _VOXELS_A_CELL)


class TorchsparseGrid:
    """The coordinates and kernel maps of one pass, kept by torchsparse; this class translates."""

    def __init__(self, library: Any, coordinates: Tensor, layout: _Layout) -> None:
        self._library = library
        self._divided = _is_divided(library)
        self._levels = {1: Level.of(coordinates)}
        self._origin = layout.origin
        self._pitch, *others = layout.cloud
        self._extent = (1, layout.clouds * self._pitch, *others)
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


class _SplitGrid:
    """A pass in several of at most `at_once` clouds each, whose voxels follow each other at every stride."""

    def __init__(self, library: Any, coordinates: Tensor, at_once: int) -> None:
        batch = coordinates[:, 0]
        if not bool((batch[1:] >= batch[:-1]).all()):
            raise BackendError(
                f"torchsparse {library.__version__} can count {at_once} such clouds at once: give the voxels of each"
                " cloud one after the other"
            )
        part = torch.div(batch, at_once, rounding_mode="floor")
        self._parts: list[tuple[int, TorchsparseGrid]] = []
        for number, voxels in enumerate(coordinates.split(torch.bincount(part).tolist())):
            if len(voxels):
                first = number * at_once
                own = voxels - voxels.new_tensor([first, 0, 0, 0])
                self._parts.append((first, TorchsparseGrid(library, own, _Layout.of(own))))
        self._levels: dict[int, Level] = {}

    def level(self, stride: int) -> Level:
        """Return the voxels at `stride`, part by part."""
        if stride not in self._levels:
            voxels = []
            for first, grid in self._parts:
                own = grid.level(stride).coordinates
                voxels.append(own + own.new_tensor([first, 0, 0, 0]))
            self._levels[stride] = Level.of(torch.cat(voxels))
        return self._levels[stride]

    def convolve(self, features: Tensor, kernel: Tensor, stride: int, window: Window) -> Tensor:
        """Return [M, out]: features [N, in] at `stride`, through kernel [K, in, out]."""
        shares = features.split([len(grid.level(stride)) for _, grid in self._parts])
        return torch.cat(
            [grid.convolve(own, kernel, stride, window) for (_, grid), own in zip(self._parts, shares, strict=True)]
        )
