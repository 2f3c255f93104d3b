"""The student: images in; detections with depths, and predictions of its teachers' targets, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datalake.sample import Objects
from student.backbone import Backbone, Features
from student.config import StudentConfig, StudentError
from student.detections import Detections
from student.labels import Labels, labels_on
from student.layers import memory_format
from student.roi_heads import DepthRoIHeads, RoIPredictions, RoIs
from student.rpn import ProposalNetwork, Proposals
from student.sampling import draw_keys
from student.timm_trunk import TimmTrunk
from student.trunk import resolved


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """All that the student predicts of B images.

    detections: of each image
    proposals: float32 [P, 4] of each image, boxes in pixels, the most likely objects first
    branch_outputs: what each branch predicts of its teacher's target, float32 [B, channels, h, w]; logits of classes
    """

    detections: list[Detections]
    proposals: list[Tensor]
    branch_outputs: dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class DetectorOutput:
    """What one training pass of the detector computed for B images.

    losses: `objectness`, `rpn_box`, `classification`, `box` and `depth`, scalars, means over the labelled images
    labels: of the labelled images
    features: of all images
    proposals: of the labelled images, before any is sampled
    rois: the proposals and labelled boxes that were sampled of each labelled image
    predictions: of the box head for them
    """

    losses: dict[str, Tensor]
    labels: Labels
    features: Features
    proposals: Proposals
    rois: RoIs
    predictions: RoIPredictions


class Student(nn.Module):
    """A Faster R-CNN with a depth head, whose backbone has a branch for each teacher (paper, section 3).

    Its `config` is `resolved`.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config = resolved(config)
        for name, values in (("_mean", config.image_mean), ("_std", config.image_std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.backbone = Backbone(config)
        self.rpn = ProposalNetwork(config)
        self.heads = DepthRoIHeads(config)

    def features(self, images: Tensor) -> Features:
        """Return the features of images uint8 or float32 within 0 … 1 [B, 3, H, W].

        Raises StudentError where an image's size does not divide into cells.
        """
        self.config.grid(*images.shape[-2:])
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        normalized = (scaled - self._mean) / self._std
        features: Features = self.backbone(
            normalized.contiguous(memory_format=memory_format(self.config.norm, images.device))
        )
        return features

    def hidden_weights(self) -> list[nn.Parameter]:
        """Return the trained weights of all layers but the first, the proposals', and the output layers.

        torchvision starts the proposals' layers at almost nothing, from where only AdamW's steps lead away quickly.
        The weights of a convolution in groups are no matrix: each group has one of its own, a depthwise one a row.
        """
        first_convolution = next(layer for layer in self.backbone.trunk.modules() if isinstance(layer, nn.Conv2d))
        output_layers = [
            *(branch.predictor for branch in self.backbone.branches.values()),
            *(layer for layer in self.rpn.head.modules() if isinstance(layer, nn.Conv2d)),
            *(self.heads.box_predictor.cls_score, self.heads.box_predictor.bbox_pred, self.heads.depth_head.predictor),
        ]
        excluded = {id(layer.weight) for layer in (first_convolution, *output_layers)}
        matrices = {
            id(layer.weight)
            for layer in self.modules()
            if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        }
        return [weight for weight in self.parameters() if weight.requires_grad and id(weight) in matrices - excluded]

    def pretrained_weights(self) -> list[nn.Parameter]:
        """Return the parameters that start from given weights."""
        trunk = self.backbone.trunk
        return list(trunk.network.parameters()) if isinstance(trunk, TimmTrunk) and self.config.is_pretrained else []

    def training_output(
        self, images: Tensor, labels: Sequence[Objects], generators: Sequence[torch.Generator]
    ) -> DetectorOutput:
        """Return what is computed of images [B, 3, H, W] (see `features`) in a training step, with detection's losses.

        labels: of the first of the images; what follows has none. Boxes without an area are ignored
        generators: one for each labelled image, which decides the anchors and proposals that are sampled
        """
        if not labels:
            raise StudentError("expected at least one labelled image to learn detection from")
        features, there = self.features(images), labels_on(images.device, labels)
        return self.detection_output(features, (images.shape[-2], images.shape[-1]), there, generators)

    def detection_output(
        self,
        features: Features,
        image_size: tuple[int, int],
        labels: Labels,
        generators: Sequence[torch.Generator],
    ) -> DetectorOutput:
        """Return the same for features that are there already, of images of (height, width) pixels."""
        images = len(labels.counts)
        levels = [level[:images] for level in features.pyramid]
        device = levels[0].device
        anchors = self.rpn.anchors(levels, image_size)
        keys = draw_keys([len(anchors)] * images, generators, device)
        objectness, deltas = self.rpn(levels)
        found, proposed = self.rpn.losses(objectness, deltas, anchors, labels, keys)
        proposals = self.rpn.propose(objectness, deltas, anchors, levels, image_size)
        keys = draw_keys(self.heads.candidates(proposals, labels), generators, device)
        rois = self.heads.choose(proposals, labels, keys)
        predictions = self.heads.predict(levels, rois.boxes)
        losses = {
            "objectness": found,
            "rpn_box": proposed,
            **self.heads.losses(predictions, rois, image_size),
        }
        if not labels.finite:
            # The loop names the sample of a loss that is not finite, on every worker.
            losses["rpn_box"] = losses["rpn_box"] * torch.nan
        return DetectorOutput(losses, labels, features, proposals, rois, predictions)

    @torch.no_grad()
    def propose(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> Proposals:
        """Return what is proposed in the images, of (height, width) pixels, of levels [B, C, h, w]."""
        objectness, deltas = self.rpn(levels)
        return self.rpn.propose(objectness, deltas, self.rpn.anchors(levels, image_size), levels, image_size)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Return what is found in images [B, 3, H, W] (see `features`). The student must be in eval mode."""
        if self.training:
            raise StudentError("the student is in training mode; call eval() before it predicts")
        features = self.features(images)
        image_size = (images.shape[-2], images.shape[-1])
        levels = features.pyramid
        proposals = self.propose(levels, image_size)
        detections = self.heads.detect(levels, proposals, image_size)
        counts = proposals.valid.sum(1).tolist()
        each = [boxes[:count] for boxes, count in zip(proposals.boxes, counts, strict=True)]
        return Prediction(detections, each, features.branch_outputs)

    def forward(self, images: Tensor) -> list[Detections]:
        """Return what is found in images [B, 3, H, W] (see `features`)."""
        return self.predict(images).detections
