"""What the student sees in one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Index is the class number, as in `datalake.sample.Objects`; 0 is background and never detected.
CLASS_NAMES = ("BACKGROUND", "VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST")


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The N objects found in one image, the most confident first.

    boxes: float32 [N, 4], x0, y0, x1, y1 in pixels of the image
    classes: int64 [N], index into CLASS_NAMES, never 0
    scores: float32 [N] within 0 … 1
    depth_m: float32 [N], distance from the camera's center in metres
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor
    depth_m: Tensor

    def __post_init__(self) -> None:
        found = len(self.boxes)
        if self.boxes.shape != (found, 4):
            raise ValueError(f"Expected boxes [N, 4], got: {list(self.boxes.shape)}")
        for name, values in (("classes", self.classes), ("scores", self.scores), ("depth_m", self.depth_m)):
            if values.shape != (found,):
                raise ValueError(f"Expected {name} [{found}], got: {list(values.shape)}")

    @property
    def not_finite(self) -> str | None:
        """Which of the fields holds a number that is not finite; None: none does."""
        for name, values in (("boxes", self.boxes), ("scores", self.scores), ("depth_m", self.depth_m)):
            if not bool(values.isfinite().all()):
                return name
        return None

    def to(self, device: torch.device | str) -> Detections:
        """Return the same on another device."""
        return Detections(
            self.boxes.to(device), self.classes.to(device), self.scores.to(device), self.depth_m.to(device)
        )
