"""The student: pictures in; detections with depths, and what it would say to its teachers, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from datalake.sample import Objects
from student.backbone import Backbone, Features
from student.config import StudentConfig, StudentError
from student.detections import Detections
from student.heads import DepthRoIHeads
from student.layers import memory_format
from student.proposals import build_proposal_network

# Of the lake's pictures, roughly; any fixed numbers near them would do.
_MEAN, _DEVIATION = 0.45, 0.25


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """All that the student says of B pictures.

    detections: of each picture
    proposals: float32 [P, 4] of each picture, boxes in pixels, the most likely objects first
    said: what each branch says to its teacher, float32 [B, channels, h, w]; logits where the teacher tells classes
    """

    detections: list[Detections]
    proposals: list[Tensor]
    said: dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class DetectorOutput:
    """What one training pass of the detector computed for B images.

    losses: `objectness`, `rpn_box`, `classification`, `box` and `depth`, scalars
    features: of all images
    """

    losses: dict[str, Tensor]
    features: Features


class Student(nn.Module):
    """A Faster R-CNN with a depth head, whose backbone imitates teachers (paper, section 3)."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.level_names = [str(level) for level in range(config.levels)]
        self.backbone = Backbone(config)
        self.rpn = build_proposal_network(config)
        self.heads = DepthRoIHeads(config, self.level_names)

    def features(self, pictures: Tensor) -> Features:
        """Return the features of pictures uint8 or float32 within 0 … 1 [B, 3, H, W].

        Raises StudentError where a picture's size does not divide into cells.
        """
        self.config.grid(*pictures.shape[-2:])
        scaled = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
        normalised = (scaled - _MEAN) / _DEVIATION
        features: Features = self.backbone(
            normalised.contiguous(memory_format=memory_format(self.config.norm, pictures.device))
        )
        return features

    def hidden_weights(self) -> list[nn.Parameter]:
        """Return the weights of all layers but the one that faces pictures, the proposals', and those that answer.

        torchvision starts the proposals' layers at almost nothing, from where only AdamW's steps lead away quickly.
        """
        entrance = next(layer for layer in self.backbone.trunk.modules() if isinstance(layer, nn.Conv2d))
        answers = [
            *(branch.say for branch in self.backbone.branches.values()),
            *(layer for layer in self.rpn.head.modules() if isinstance(layer, nn.Conv2d)),
            *(self.heads.box_predictor.cls_score, self.heads.box_predictor.bbox_pred, self.heads.depth_head.tell),
        ]
        facing = {id(layer.weight) for layer in (entrance, *answers)}
        return [weight for weight in self.parameters() if weight.ndim > 1 and id(weight) not in facing]

    def training_output(
        self, images: Tensor, labels: Sequence[Objects], generators: Sequence[torch.Generator]
    ) -> DetectorOutput:
        """Return features and losses of images [B, 3, H, W] (see `features`), of which the first are labelled.

        generators: one for each labelled image, which decides the anchors and proposals that the losses look at
        """
        features = self.features(images)
        image_size = (images.shape[-2], images.shape[-1])
        return DetectorOutput(self.detection_losses(features, image_size, labels, generators), features)

    def detection_losses(
        self,
        features: Features,
        image_size: tuple[int, int],
        labels: Sequence[Objects],
        generators: Sequence[torch.Generator],
    ) -> dict[str, Tensor]:
        """Return `objectness`, `rpn_box`, `classification`, `box` and `depth`, means over the labelled pictures.

        labels: of the first pictures in `features`; what follows has none. Boxes without an area teach nothing
        generators: one for each labelled picture, which decides the anchors and proposals that are looked at
        """
        if not labels:
            raise StudentError("expected at least one labelled picture to learn detection from")
        device = features.pyramid[0].device
        levels = {name: level[: len(labels)] for name, level in zip(self.level_names, features.pyramid, strict=True)}
        targets = []
        for one in labels:
            # Scaled down, a box may be as thin as rounding: the logarithm of its side would be infinite.
            lost = (one.boxes[:, 2:] <= one.boxes[:, :2]).any(1)
            values = {"boxes": one.boxes, "labels": one.classes, "depth_m": one.depth_m}
            targets.append({name: value[~lost].to(device) for name, value in values.items()})
        self.rpn.fg_bg_sampler.generators = self.heads.fg_bg_sampler.generators = generators
        proposals, found = self.rpn(_image_list(len(labels), image_size, device), levels, targets)
        return {
            "objectness": found["loss_objectness"],
            "rpn_box": found["loss_rpn_box_reg"],
            **self.heads.losses(levels, proposals, image_size, targets),
        }

    @torch.no_grad()
    def answer(self, pictures: Tensor) -> Answer:
        """Return what is found in pictures [B, 3, H, W] (see `features`). The student must be in eval mode."""
        if self.training:
            raise StudentError("the student is in training mode; call eval() before it answers")
        features = self.features(pictures)
        image_size = (pictures.shape[-2], pictures.shape[-1])
        levels = dict(zip(self.level_names, features.pyramid, strict=True))
        proposals, _ = self.rpn(_image_list(len(pictures), image_size, pictures.device), levels)
        return Answer(self.heads.detect(levels, proposals, image_size), proposals, features.said)

    def forward(self, pictures: Tensor) -> list[Detections]:
        """Return what is found in pictures [B, 3, H, W] (see `features`)."""
        return self.answer(pictures).detections


def _image_list(count: int, image_size: tuple[int, int], device: torch.device) -> ImageList:
    # Only the size is looked at; the pictures themselves are not carried along.
    return ImageList(torch.empty(count, 0, *image_size, device=device), [image_size] * count)
