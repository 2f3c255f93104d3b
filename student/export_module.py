"""The student from one image to its detections, in shapes that do not depend on the image.

`torch.export` cannot follow a program that asks how many boxes are left. Nothing is dropped before the last line: what
is not there keeps its place, with a score below all others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from student.detector import Student
from training.pooling import rois_of


class ExportableDetector(nn.Module):
    """A student for images uint8 [1, 3, H, W] of one size. Its weights are the student's own, not copies."""

    anchors: Tensor

    def __init__(self, student: Student, image_size: tuple[int, int]) -> None:
        """Prepare it for images of (height, width) pixels; raises StudentError where they do not divide into cells.

        The student is on the CPU, in eval mode.
        """
        super().__init__()
        self.student, self._image_size = student, image_size
        height, width = student.config.grid(*image_size)
        levels = [torch.empty(1, 1, height >> level, width >> level) for level in range(student.config.levels)]
        self.register_buffer("anchors", student.rpn.anchors(levels, image_size), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `Detections` holds: boxes [N, 4], classes [N], scores [N] and depth_m [N], the best first."""
        levels, heads = self.student.features(image).pyramid, self.student.heads
        objectness, deltas = self.student.rpn(levels)
        proposals = self.student.rpn.propose(objectness, deltas, self.anchors, levels, self._image_size)
        found = heads.find(levels, proposals, self._image_size)
        depth_m = heads.depths_m(levels, rois_of(found.boxes), found.classes[0], self._image_size)
        # The only shape that depends on the image.
        kept = found.valid[0].nonzero()[:, 0]
        return found.boxes[0, kept], found.classes[0, kept], found.scores[0, kept], depth_m[kept]
