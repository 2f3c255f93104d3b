"""The points of one frame, shared by all that is made of the frame."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from datalake.sample import Sweep
from datalake.sample_options import POINT


@dataclass(frozen=True, slots=True)
class Cloud:
    """One frame's points, as `Lidar` has them: made once, shared by the samples of all its cameras.

    row: int32 [P], where each of the record's points is now, -1 for one that was left out; None where all are kept
    """

    points: torch.Tensor
    laser: torch.Tensor
    semantic_class: torch.Tensor | None
    row: NDArray[np.int32] | None

    def moved(self, timestamp_us: int, to_vehicle: NDArray[np.float64]) -> Sweep:
        """Return the points as a sweep.

        timestamp_us: of this cloud's frame
        to_vehicle: float64 [4, 4], from the vehicle frame of then to that of the frame that the sweep is for
        """
        # The way between two frames is short: float32 has it to a hundredth of a millimetre.
        near = torch.from_numpy(to_vehicle.astype(np.float32))
        points = torch.empty_like(self.points)
        torch.addmm(near[:3, 3:], near[:3, :3], self.points[:3], out=points[:3])
        points[3] = self.points[3]
        return Sweep(timestamp_us, points, self.laser)


def read_clouds(point: dict[str, Any], lasers: Collection[int]) -> dict[int, Cloud]:
    """Return the points of each of these rows of `point`, by their time; of these lasers alone, if any are named."""
    columns = {name: list_rows(point[name]) for name in POINT}
    clouds = {}
    for frame, timestamp_us in enumerate(point["timestamp_us"].tolist()):
        rows = {name: values[frame] for name, values in columns.items()}
        row = None
        if lasers:
            kept = np.isin(rows["laser"], list(lasers))
            row = np.where(kept, kept.cumsum(dtype=np.int32) - 1, -1)
            rows = {name: None if values is None else values[kept] for name, values in rows.items()}
        semantic = rows["semantic_class"]
        clouds[timestamp_us] = Cloud(
            points=torch.from_numpy(np.stack([rows[name] for name in ("x_m", "y_m", "z_m", "intensity")])),
            laser=own_tensor(rows["laser"]),
            semantic_class=None if semantic is None else own_tensor(semantic),
            row=row,
        )
    return clouds


def list_rows(lists: pa.ListArray) -> list[Any]:
    """Return the rows of a list column as numpy arrays, without a copy, and None where a row is null."""
    offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy()
    valid = lists.is_valid().to_pylist()
    bounds = itertools.pairwise(offsets.tolist())
    return [values[start:stop] if there else None for there, (start, stop) in zip(valid, bounds, strict=True)]


def own_tensor(values: NDArray[Any]) -> torch.Tensor:
    """Return an own copy as a tensor: Arrow's memory is read-only, and lives as long as any part of it."""
    return torch.from_numpy(values.copy())
