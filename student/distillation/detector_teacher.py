"""A detector that teaches: a frozen student of another training, asked about the images of the step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from student.config import StudentConfig
from student.detector import Student
from student.export import weights_file
from student.roi_heads import Found, RoIPredictions
from student.rpn import Proposals


class DetectorTeacherOutput:
    """What a detector teacher makes of B images. Nothing of it takes a gradient.

    What costs more than the features is computed for those methods alone that ask for it, and from `pyramid`: where a
    control has put another one there, proposals and predictions say as little of the image as it does.

    detector: the teacher; its parameters take no gradient, what is computed with them may
    pyramid: float32 [B, C, h, w] of each level
    image_size: height and width of the images in pixels
    """

    def __init__(self, detector: Student, pyramid: tuple[Tensor, ...], image_size: tuple[int, int]) -> None:
        self.detector, self.pyramid, self.image_size = detector, pyramid, image_size

    def with_pyramid(self, pyramid: tuple[Tensor, ...]) -> DetectorTeacherOutput:
        """Return what the teacher would make of other features, or of those of some of the images."""
        return DetectorTeacherOutput(self.detector, pyramid, self.image_size)

    @cached_property
    def proposals(self) -> Proposals:
        """The teacher's proposals in all of the images; computed once, however many methods ask."""
        with torch.no_grad():
            rpn = self.detector.rpn
            objectness, deltas = rpn(self.pyramid)
            anchors = rpn.anchors(self.pyramid, self.image_size)
            return rpn.propose(objectness, deltas, anchors, self.pyramid, self.image_size)

    @cached_property
    def detections(self) -> Found:
        """What the teacher finds in all of the images, without depths; computed once."""
        with torch.no_grad():
            return self.detector.heads.find(self.pyramid, self.proposals, self.image_size)

    @torch.no_grad()
    def predict(self, boxes: Tensor) -> RoIPredictions:
        """Return what the teacher's box head says of boxes float32 [L, S, 4], in pixels, of the first L images."""
        return self.detector.heads.predict([level[: len(boxes)] for level in self.pyramid], boxes)


class DetectorTeacher:
    """A detector that is asked about images and never changes.

    It is no module, so that whoever holds it has its weights neither among his parameters nor in his state dict.

    weights_sha256: hex digest of its weights and configuration; of a run's detector the same as of its export
    """

    def __init__(self, detector: Student) -> None:
        self._detector = detector.eval().requires_grad_(False)
        self.weights_sha256 = hashlib.sha256(weights_file(detector)).hexdigest()

    @property
    def config(self) -> StudentConfig:
        """What it is made of."""
        return self._detector.config

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change the device, type or layout of its weights as `torch.nn.Module.to` does with a module's."""
        self._detector._apply(change)

    @torch.no_grad()
    def predict(self, images: Tensor) -> DetectorTeacherOutput:
        """Return what it makes of images [B, 3, H, W], as a student gets them."""
        pyramid = self._detector.features(images).pyramid
        return DetectorTeacherOutput(self._detector, pyramid, (images.shape[-2], images.shape[-1]))
