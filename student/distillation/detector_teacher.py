"""A detector that teaches: frozen, a student of another training or not, asked about the images of the step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from student.backbone import Features
from student.depth import decode_depth
from student.detector import Student
from student.export import weights_file
from student.roi_heads import BatchDetections, RoIPredictions
from student.rpn import Proposals
from teachers.card import TeacherError


class PyramidShape(Protocol):
    """Which pyramid a detector has: what has to fit the student's."""

    @property
    def width(self) -> int:
        """Channels of each level."""

    @property
    def stride(self) -> int:
        """Pixels per cell of the first level; of each further one twice as many."""

    @property
    def levels(self) -> int:
        """How many levels there are."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the first level; raises StudentError where images do not divide into cells."""


class BoxHead(Protocol):
    """What a detector says of boxes, in the student's classes; differentiable with respect to the levels."""

    def predict(self, levels: Sequence[Tensor], boxes: Tensor) -> RoIPredictions:
        """Return what is predicted of boxes [B, S, 4] in the images of levels [B, C, h, w]."""

    def find(self, levels: Sequence[Tensor], proposals: Proposals, image_size: tuple[int, int]) -> BatchDetections:
        """Return what is found in images of (height, width) pixels."""


class TeachingDetector(Protocol):
    """What the methods use of a detector: a module like `Student`, or `TorchvisionDetector`."""

    @property
    def config(self) -> PyramidShape:
        """What its pyramid is like."""

    @property
    def heads(self) -> BoxHead:
        """Its box head."""

    def features(self, images: Tensor) -> Features:
        """Return the pyramid of images uint8 or float32 within 0 … 1 [B, 3, H, W]."""

    def propose(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> Proposals:
        """Return what is proposed in images of (height, width) pixels."""

    def eval(self) -> Any:
        """Switch all norms to their statistics, as `torch.nn.Module.eval` does."""

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Freeze all parameters, as `torch.nn.Module.requires_grad_` does."""

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> Any: ...


class DetectorTeacherOutput:
    """What a detector teacher makes of B images. Nothing of it takes a gradient.

    What costs more than the features is computed for those methods alone that ask for it, and from `pyramid`: where a
    control has put another one there, proposals and predictions say as little of the image as it does.

    detector: the teacher; its parameters take no gradient, what is computed with them may
    pyramid: float32 [B, C, h, w] of each level
    image_size: height and width of the images in pixels
    """

    def __init__(self, detector: TeachingDetector, pyramid: tuple[Tensor, ...], image_size: tuple[int, int]) -> None:
        self.detector, self.pyramid, self.image_size = detector, pyramid, image_size

    def with_pyramid(self, pyramid: tuple[Tensor, ...]) -> DetectorTeacherOutput:
        """Return what the teacher would make of other features, or of those of some of the images."""
        return DetectorTeacherOutput(self.detector, pyramid, self.image_size)

    @cached_property
    def proposals(self) -> Proposals:
        """The teacher's proposals in all of the images; computed once, however many methods ask."""
        with torch.no_grad():
            return self.detector.propose(self.pyramid, self.image_size)

    @cached_property
    def detections(self) -> BatchDetections:
        """What the teacher finds in all of the images, without depths; computed once."""
        with torch.no_grad():
            return self.detector.heads.find(self.pyramid, self.proposals, self.image_size)

    @torch.no_grad()
    def predict(self, boxes: Tensor) -> RoIPredictions:
        """Return what the teacher's box head says of boxes float32 [L, S, 4], in pixels, of the first L images."""
        return self.detector.heads.predict([level[: len(boxes)] for level in self.pyramid], boxes)

    @torch.no_grad()
    def depths_m(self, predictions: RoIPredictions, boxes: Tensor) -> Tensor:
        """Return the depth in metres float32 [L, S, M] of each class of boxes [L, S, 4], of which it predicted these.

        Raises TeacherError where the teacher is not a student: no other detector knows depths.
        """
        if not isinstance(self.detector, Student):
            raise TeacherError("a detector without a depth head was asked for depths; leave --kd.depth out")
        encoded = self.detector.heads.encoded_depths(predictions.pooled, boxes, self.image_size)
        return decode_depth(encoded, self.detector.config.max_depth_m)


class DetectorTeacher:
    """A detector that is asked about images and never changes.

    It is no module, so that a module that holds it has its weights neither among its parameters nor in its state dict.

    weights_sha256: hex digest of the file of its weights; of a run's student, of the file that its export would be
    """

    def __init__(self, detector: Student | TeachingDetector, weights_sha256: str = "") -> None:
        """Freeze the detector.

        weights_sha256: of the file that it is from; a student of a run is from none
        """
        detector.eval()
        detector.requires_grad_(False)
        self._detector: TeachingDetector = detector
        if isinstance(detector, Student) and not weights_sha256:
            weights_sha256 = hashlib.sha256(weights_file(detector)).hexdigest()
        self.weights_sha256 = weights_sha256

    @property
    def config(self) -> PyramidShape:
        """What its pyramid is like."""
        return self._detector.config

    @property
    def knows_depths(self) -> bool:
        """Whether it can be asked for depths, too."""
        return isinstance(self._detector, Student)

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change the device, type or layout of its weights as `torch.nn.Module.to` does with a module's."""
        self._detector._apply(change)

    @torch.no_grad()
    def predict(self, images: Tensor) -> DetectorTeacherOutput:
        """Return what it makes of images [B, 3, H, W], as a student gets them."""
        pyramid = self._detector.features(images).pyramid
        return DetectorTeacherOutput(self._detector, pyramid, (images.shape[-2], images.shape[-1]))
