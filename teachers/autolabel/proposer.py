"""Both teachers of auto-labels, as they are asked about the images of a lake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from datalake.sample import Sample
from datalake.sources.frame import LASERS
from teachers.autolabel.evidence import Evidence, evidence_of
from teachers.autolabel.lidar_objects import LidarObjects, lidar_objects
from teachers.autolabel.seen_points import SeenPoints
from teachers.card import TeacherCard, TeacherError
from teachers.classes import MASK_CLASSES, lidar_to_mask
from teachers.load import load_teacher
from teachers.mask_rcnn import teacher as mask_rcnn
from teachers.mask_rcnn.teacher import MaskRcnnTeacher
from teachers.spvnas import teacher as spvnas
from teachers.spvnas.teacher import SpvnasTeacher

_TOP = LASERS.index("TOP")


@dataclass(frozen=True, slots=True)
class LabelTeachers:
    """The folders of the teachers that make auto-labels.

    mask: of a Mask R-CNN, which proposes the boxes
    lidar: of an SPVCNN or SPVNAS, which confirms or refutes them; None: nobody does
    """

    mask: str
    lidar: str | None

    @staticmethod
    def of(teachers: dict[str, str], cards: dict[str, TeacherCard]) -> LabelTeachers:
        """Return them from folders and cards by name; raises TeacherError unless there is one, or one of either."""
        masks = [url for name, url in teachers.items() if cards[name].architecture == mask_rcnn.ARCHITECTURE]
        lidars = [url for name, url in teachers.items() if cards[name].architecture == spvnas.ARCHITECTURE]
        if len(masks) != 1 or len(lidars) > 1 or len(masks) + len(lidars) != len(teachers):
            raise TeacherError(
                f"--teachers {' '.join(teachers) or 'none'}: expected a mask teacher (mask_rcnn), and beside it a lidar"
                " teacher (spvcnn) or none"
            )
        return LabelTeachers(masks[0], lidars[0] if lidars else None)


class Proposer:
    """Asks the mask teacher for boxes, and the lidar teacher for what it says of the points within."""

    def __init__(self, masks: MaskRcnnTeacher, lidar: SpvnasTeacher | None) -> None:
        self.masks, self.lidar = masks, lidar

    @staticmethod
    def load(teachers: LabelTeachers, device: torch.device) -> Proposer:
        """Return the teachers in their folders; raises TeacherError where one cannot be used."""
        masks = load_teacher(teachers.mask, device)
        lidar = None if teachers.lidar is None else load_teacher(teachers.lidar, device)
        assert isinstance(masks, MaskRcnnTeacher), "as its card says"
        assert lidar is None or isinstance(lidar, SpvnasTeacher), "as its card says"
        return Proposer(masks, lidar)

    @cached_property
    def _type_of_class(self) -> Tensor:
        return torch.tensor(() if self.lidar is None else lidar_to_mask(self.lidar.card.class_names))

    def propose(self, samples: Sequence[Sample]) -> list[tuple[Evidence, LidarObjects]]:
        """Return what is known of each sample's detections, and what the lidar teacher finds without them.

        Raises TeacherError for a sample that was loaded without points: they say how far the objects are.
        """
        if any(sample.lidar is None for sample in samples):
            raise TeacherError("auto-labels: samples without points; load them with points=True")
        found = self.masks.detections(samples)
        told: Sequence[Tensor | None] = [None] * len(samples)
        if self.lidar is not None:
            told = self.lidar.class_probabilities(samples)
        proposed = []
        for sample, detections, probabilities in zip(samples, found, told, strict=True):
            assert sample.lidar is not None
            size = sample.image.shape[1], sample.image.shape[2]
            seen = SeenPoints.of(sample.lidar, _TOP, probabilities, self._type_of_class, len(MASK_CLASSES), size)
            objects = lidar_objects(seen)
            proposed.append((evidence_of(detections, seen, objects, size), objects))
        return proposed
