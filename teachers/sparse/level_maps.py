"""The levels of one pass and the maps between them, each made when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from teachers.sparse.grid import BackendError
from teachers.sparse.level import Level
from teachers.sparse.window import Window

Map = TypeVar("Map")


class LevelMaps(Generic[Map]):
    """What a backend finds out about the voxels of a pass, in whatever form it maps them.

    base: the voxels of stride 1
    submanifold: makes the map of a kernel that keeps the voxels of a level, from the level, its stride and the size
    strided: makes the coarser level and the map that leads there, from the same
    """

    def __init__(
        self,
        base: Level,
        submanifold: Callable[[Level, int, int], Map],
        strided: Callable[[Level, int, int], tuple[Level, Map]],
    ) -> None:
        self._levels = {1: base}
        self._maps: dict[tuple[int, int, int], Map] = {}
        self._submanifold, self._strided = submanifold, strided

    def level(self, stride: int) -> Level:
        """Return the voxels at `stride`. Raises BackendError where no convolution has led there."""
        level = self._levels.get(stride)
        if level is None:
            raise BackendError(
                f"this pass has no voxels of stride {stride}, only {sorted(self._levels)}; "
                "a transposed convolution can only return to where a strided one came from"
            )
        return level

    def find(self, stride: int, window: Window) -> Map:
        """Return the map of a window on features at `stride`; of a transposed window that which it has to reverse.

        Raises BackendError where a transposed window leads to a stride that the pass has not come from.
        """
        fine = window.output_stride(stride) if window.transposed else stride
        level = self.level(fine)
        key = (fine, window.size, window.stride)
        if key not in self._maps:
            if window.stride == 1:
                self._maps[key] = self._submanifold(level, fine, window.size)
            elif window.transposed:
                raise BackendError(
                    f"nothing to transpose: no {window.size}³ convolution has led from stride {fine} to {stride}"
                )
            else:
                coarse, self._maps[key] = self._strided(level, fine, window.size)
                self._levels.setdefault(fine * window.stride, coarse)
        return self._maps[key]
