"""How many of the objects the student's proposals leave a chance to be detected."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

from datalake.sample import Objects
from student.detections import CLASS_NAMES
from student.evaluation.image import box_sizes, objects_on_cpu
from student.evaluation.ranges import ABOVE_16_PIXELS, SIZES

_MIN_IOU = 0.5


class ProposalRecall:
    """The share of objects that one of the first `limit` proposals of their image overlaps with IoU 0.5 or more.

    Proposals have no class. One may do for two objects that lie on top of each other.
    """

    def __init__(self, limit: int = 100) -> None:
        if limit < 1:
            raise ValueError(f"Expected a limit of at least 1, got: {limit}")
        self._limit = limit
        self._recalled: list[Tensor] = []
        self._classes: list[Tensor] = []
        self._sizes: list[Tensor] = []

    def add(self, proposals: Tensor, objects: Objects) -> None:
        """Count one image; proposals are float32 [K, 4], x0, y0, x1, y1 in pixels, the best first.

        Raises ValueError where shapes do not fit.
        """
        if proposals.ndim != 2 or proposals.shape[1] != 4:
            raise ValueError(f"Expected proposals [K, 4], got: {list(proposals.shape)}")
        objects = objects_on_cpu(objects)
        best = proposals[: self._limit].detach().cpu().double()
        self._recalled.append((box_iou(best, objects.boxes.double()) >= _MIN_IOU).any(0))
        self._classes.append(objects.classes)
        self._sizes.append(box_sizes(objects.boxes))

    def metrics(self) -> dict[str, float]:
        """Return `recall@<limit>`, and that of some objects: `/small`, `/medium`, `/large`, `/>16px` and `/<class>`.

        Sizes are the objects' own. What no object belongs to is left out.
        """
        if not self._recalled:
            return {}
        recalled, classes, sizes = torch.cat(self._recalled), torch.cat(self._classes), torch.cat(self._sizes)
        whose = {
            "": torch.ones_like(recalled),
            **{f"/{one.name}": one.contains(sizes) for one in (ABOVE_16_PIXELS, *SIZES)},
            **{f"/{name}": classes == number for number, name in enumerate(CLASS_NAMES) if number},
        }
        return {
            f"recall@{self._limit}{suffix}": float(recalled[chosen].double().mean())
            for suffix, chosen in whose.items()
            if chosen.any()
        }
