"""The lidar's points as one image shows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datalake.sample import Lidar


@dataclass(frozen=True, slots=True, eq=False)
class SeenPoints:
    """The n returns that one image shows, with what the lidar teacher says of them.

    u, v: int64 [n], pixels of the sample, within the image
    depth_m: float32 [n]
    xy_m: float32 [n, 2], where they are in the vehicle frame, from above
    type_probability: float32 [n, M], how likely each is of `MASK_CLASSES`; NaN for returns that the teacher is not
        asked about
    lidar: whether it was asked about any return of the frame
    """

    u: NDArray[np.int64]
    v: NDArray[np.int64]
    depth_m: NDArray[np.float32]
    xy_m: NDArray[np.float32]
    type_probability: NDArray[np.float32]
    lidar: bool

    @staticmethod
    def of(
        lidar: Lidar, laser: int, probabilities: Tensor | None, type_of_class: Tensor, types: int, size: tuple[int, int]
    ) -> SeenPoints:
        """Return what an image of (height, width) pixels shows.

        laser: number of the laser whose points the lidar teacher sees
        probabilities: float32 [P', K] of this laser's points, in their order; None where no teacher was asked
        type_of_class: int64 [K], the type that each of its classes is part of
        types: how many there are
        """
        height, width = size
        u, v = lidar.pixel_uv.floor().long()
        shown = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        point = lidar.pixel_point.long()[shown]
        of_types = torch.full((lidar.points.shape[1], types), torch.nan)
        asked = probabilities is not None and len(probabilities) > 0
        if probabilities is not None:
            summed = torch.zeros(len(probabilities), types).index_add_(1, type_of_class, probabilities)
            of_types[lidar.laser == laser] = summed
        return SeenPoints(
            u[shown].numpy(),
            v[shown].numpy(),
            lidar.pixel_depth_m[shown].numpy(),
            lidar.points[:2, point].T.numpy(),
            of_types[point].numpy(),
            asked,
        )
