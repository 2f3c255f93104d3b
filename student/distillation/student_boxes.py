"""The student's own boxes, about which the box heads of detector teachers are asked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from student.detector import DetectorOutput, Student


@dataclass(frozen=True, slots=True, eq=False)
class StudentBoxes:
    """S of the student's boxes in each of B images.

    boxes: float32 [B, S, 4], x0, y0, x1, y1 in pixels; 0 where there is none
    valid: bool [B, S], where there is one
    """

    boxes: Tensor
    valid: Tensor

    @staticmethod
    @torch.no_grad()
    def of(student: Student, output: DetectorOutput, image_size: tuple[int, int]) -> StudentBoxes:
        """Return the boxes of all images, of (height, width) pixels, of a training pass.

        Of a labelled image these are the RoIs that were sampled for its losses, labelled boxes among them. Of an image
        without labels they are the student's best proposals after suppression, as many, with nothing sampled or added:
        no random number is drawn.
        """
        boxes, valid = output.rois.boxes, output.rois.classes >= 0
        labelled, most = valid.shape
        levels = [level[labelled:] for level in output.features.pyramid]
        if not len(levels[0]):
            return StudentBoxes(boxes, valid)
        best = student.propose(levels, image_size)
        missing = max(0, most - best.valid.shape[1])
        return StudentBoxes(
            torch.cat([boxes, pad(best.boxes[:, :most], (0, 0, 0, missing))]),
            torch.cat([valid, pad(best.valid[:, :most], (0, missing))]),
        )

    def mean(self, values: Tensor, weights: Tensor | None = None, least: float = 1.0) -> Tensor:
        """Return the mean over images of the mean of values [B, S] over an image's boxes.

        weights: float32 [B, S], how much each box counts among its image's; all the same by default
        least: what the sum of an image's weights, by which is divided, is taken for where it is less

        Other images of the batch do not change an image's share.
        """
        counted = self.valid.float() if weights is None else weights * self.valid
        sums = (torch.where(self.valid, values, 0.0) * counted).sum(1)
        return (sums / counted.sum(1).clamp(min=least)).mean()
