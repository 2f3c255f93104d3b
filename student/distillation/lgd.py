"""LGD, label-guided self-distillation: the student's features come close to maps made of the labels; no teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datalake.sample import Objects
from student.backbone import Features
from student.config import StudentConfig, StudentError
from student.detections import Detections
from student.detector import DetectorOutput, Student
from student.distillation.batch import DetectionBatch
from student.distillation.instructive_maps import InstructiveMaps
from student.distillation.method import DistillationMethod
from student.distillation.objective import LossWeights
from student.distillation.standardization import standardized
from student.labels import Labels, labels_on
from training.objective import Loss

_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class LGDConfig:
    """How much LGD counts; the defaults are its paper's for Faster R-CNN."""

    # Weight of the distance of the student's features from the instructive maps.
    weight: float = 1.0
    # Weight of the detection losses on the instructive maps, beside the weights that each of them has in --weights.
    detection_weight: float = 1.0
    # Share of the training after which the student learns from the maps; until then its adapter alone does.
    start: float = 1 / 3
    # An object as large as the image takes part.
    context: bool = False
    # Whether the detection losses on the maps also train the backbone, through the objects' appearance.
    appearance_trains_backbone: bool = False


class LGD(DistillationMethod):
    """Label-guided self-distillation (Zhang et al. 2022, "LGD: Label-guided Self-distillation for Object Detection").

    Of labels and of the student's features `InstructiveMaps` makes maps like the pyramid. The student's own heads
    detect in them what the labels say (equation 6), which trains these heads and what makes the maps. The student's
    features, by way of an adapter, are to be like the maps, which take no gradient from it: the mean squared error
    after an instance norm of both (equation 5), 2 (1 - correlation over the cells) of each channel.

    Not as there: the error is the mean over the cells of a level, and then over levels, so that the finest level does
    not count three quarters. Images without objects, which the official code leaves out of its training, count 0.
    Nothing is frozen at first: no backbone comes trained. The label encoder is narrower. The default student trains
    with 320 k parameters more, which no product has.

    student: whose pyramid it is
    weights: of the detection losses
    """

    config: LGDConfig

    def __init__(self, config: LGDConfig, student: StudentConfig, weights: LossWeights) -> None:
        super().__init__()
        self.config, self.weights = config, weights
        self.maps = InstructiveMaps(student, context=config.context)
        width = student.width
        self.adapter = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        """Return `lgd/distillation`, and of each detection loss the maps' as `lgd/…`; means over labelled images."""
        device = batch.images.device
        chosen = [image for image, count in enumerate(output.labels.counts) if count]
        pyramid = [_images(level, chosen) for level in output.features.pyramid] if chosen else []
        values = dict.fromkeys(["distillation", *output.losses], torch.zeros((), device=device))
        if chosen:
            labels = _labels(output.labels, chosen)
            image_size = (batch.images.shape[-2], batch.images.shape[-1])
            maps = self._maps(pyramid, labels, image_size)
            generators = batch.chance.generators("lgd")
            found = student.detection_output(
                Features(maps, {}), image_size, labels, [generators[image] for image in chosen]
            )
            learned = progress >= self.config.start
            features = [level if learned else level.detach() for level in pyramid]
            values = {"distillation": self._distance(features, maps), **found.losses}
        # An image without objects is one of those that the mean is over: what the others weigh depends on none.
        share = len(chosen) / len(output.labels.counts)
        weighted = {"distillation": self.config.weight}
        weighted |= {name: self.config.detection_weight * getattr(self.weights, name) for name in output.losses}
        return {f"lgd/{name}": Loss(share * values[name], weight) for name, weight in weighted.items()}

    @torch.no_grad()
    def detect(self, student: Student, images: Tensor, labels: Sequence[Objects]) -> list[Detections]:
        """Return what the student, in eval mode, finds in the instructive maps of labelled images [B, 3, H, W].

        How good the maps are: far better than the student's own features, or the label encoder does not work. Of an
        image without objects there is no map, and nothing is found there.
        """
        if student.training:
            raise StudentError("the student is in training mode; call eval() before it predicts")
        there = labels_on(images.device, labels)
        chosen = [image for image, count in enumerate(there.counts) if count]
        nothing = Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0))
        found = [nothing.to(images.device)] * len(images)
        if chosen:
            image_size = (images.shape[-2], images.shape[-1])
            pyramid = student.features(_images(images, chosen)).pyramid
            maps = self._maps(pyramid, _labels(there, chosen), image_size)
            objectness, deltas = student.rpn(maps)
            anchors = student.rpn.anchors(maps, image_size)
            proposals = student.rpn.propose(objectness, deltas, anchors, maps, image_size)
            for image, one in zip(chosen, student.heads.detect(maps, proposals, image_size), strict=True):
                found[image] = one
        return found

    def _maps(self, pyramid: Sequence[Tensor], labels: Labels, image_size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return the instructive maps float32 [B, C, h, w] of images that each have an object."""
        seen = [level if self.config.appearance_trains_backbone else level.detach() for level in pyramid]
        maps: tuple[Tensor, ...] = self.maps(seen, labels, image_size)
        return maps

    def _distance(self, pyramid: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
        """Return the distillation loss, the mean over levels.

        Under autocast the adapter's convolutions are computed in its type, and the distance in float32.
        """
        pairs = zip(pyramid, maps, strict=True)
        return torch.stack(
            [normed_distance(self.adapter(level).float(), truth.detach()) for level, truth in pairs]
        ).mean()


def normed_distance(features: Tensor, truth: Tensor) -> Tensor:
    """Return the mean squared error of [B, C, h, w], each channel of each image normed to mean 0 and variance 1.

    For channels that vary by much more than 1e-5 this is 2 (1 - r), the mean over images and channels; r is the
    correlation of the two channels over the cells. Channels that do not vary, as of one cell, become 0.
    """
    return (normed(features) - normed(truth)).square().mean()


def normed(features: Tensor) -> Tensor:
    """Return [B, C, h, w] as they are compared: each channel of each image with mean 0 and variance 1."""
    return standardized(features, _EPSILON)


def _labels(labels: Labels, chosen: Sequence[int]) -> Labels:
    """Return the labels of the chosen ones of the images."""
    boxes, classes, depth_m = (_images(values, chosen) for values in (labels.boxes, labels.classes, labels.depth_m))
    weight, ignored = (
        None if values is None else _images(values, chosen) for values in (labels.weight, labels.ignored)
    )
    counts = tuple(labels.counts[image] for image in chosen)
    return Labels(boxes, classes, depth_m, counts, labels.finite, weight, ignored)


def _images(values: Tensor, chosen: Sequence[int]) -> Tensor:
    """Return the chosen ones of images [B, …]; all of the first are a view."""
    if list(chosen) == list(range(len(chosen))):
        return values[: len(chosen)]
    each = values.unbind()
    return torch.stack([each[image] for image in chosen])
