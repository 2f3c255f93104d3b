"""Samples made by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from datalake.sample import Lidar, Objects, Panoptic, Sample, SampleKey
from training.generators import Chance
from training.objective import Batch, Objective


def sample(
    number: int = 0, *, image: Tensor | None = None, lidar: Lidar | None = None, panoptic: Panoptic | None = None
) -> Sample:
    """Return a sample whose key says `number`."""
    return Sample(
        key=SampleKey(f"segment_{number}", number, "FRONT"),
        image=torch.zeros(3, 8, 12, dtype=torch.uint8) if image is None else image,
        objects=Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0)),
        lidar=lidar,
        panoptic=panoptic,
        intrinsic=None,
        camera_to_vehicle=None,
    )


def lidar(points: Tensor, laser: Tensor, semantic_class: Tensor | None) -> Lidar:
    """Return points [4, P] that no camera sees."""
    return Lidar(
        points=points,
        laser=laser.to(torch.int8),
        semantic_class=None if semantic_class is None else semantic_class.to(torch.int8),
        pixel_point=torch.zeros(0, dtype=torch.int32),
        pixel_uv=torch.zeros(2, 0),
        pixel_depth_m=torch.zeros(0),
    )


def panoptic(classes: list[list[int]], instances: list[list[int]]) -> Panoptic:
    """Return labels [H, W]."""
    return Panoptic(torch.tensor(classes, dtype=torch.uint8), torch.tensor(instances, dtype=torch.int32))


def losses_of(objective: Objective, *samples: Sample, step: int = 0) -> dict[str, float]:
    """Return the losses of a batch of labelled samples."""
    chance = Chance(0, step, tuple(range(len(samples))))
    losses = objective(objective.collate(Batch(samples, len(samples), 0), {}, chance), 0.0)
    return {name: float(loss.value.detach()) for name, loss in losses.items()}
