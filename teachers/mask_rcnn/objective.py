"""The objective of Mask R-CNN: boxes and masks of vehicles, pedestrians and cyclists, from panoptic labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList

from datalake.sample import Panoptic, Sample
from teachers.classes import CAMERA_TO_MASK, IGNORED, MASK_CLASSES
from teachers.mask_rcnn.captured_features import CapturedFeatures
from teachers.mask_rcnn.instances import instances_of
from training.errors import TrainingError
from training.generators import Chance
from training.objective import Batch, Loss, Objective, ParameterGroup

_Convolution = nn.modules.conv._ConvNd
_MASK_OF = torch.tensor(CAMERA_TO_MASK)
# Of every hundred pixels some ninety are background, eight vehicles, and all pedestrians and cyclists share one.
_PIXEL_WEIGHTS = (0.5, 1.0, 3.0, 5.0)


@dataclass(frozen=True, slots=True, eq=False)
class MaskBatch:
    """Images float32 [3, H, W], torchvision's targets of each, and each image's classes int64 [H, W]."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    classes: list[Tensor]


class MaskRcnnObjective(Objective):
    """The five losses of Mask R-CNN (He et al. 2017) and one more, on images that are mirrored and lit at random.

    The sixth, `pixels`, is the cross-entropy of each pixel's class, predicted by a 1 x 1 convolution on the finest
    level of the pyramid. Boxes and masks give a backbone that is trained from scratch little gradient for most cells;
    this gives one for each (as the semantic branch of Chen et al., HTC, 2019). The layer is not part of the teacher.

    options: the detector's configuration, plain values
    min_pixels: smaller instances are background. A few pixels are nothing that a stride of 4 could outline.
    light: brightness and contrast vary by a factor within 1 ± this
    pretrained: the trunk starts from given weights
    """

    def __init__(
        self,
        detector: MaskRCNN,
        options: Mapping[str, Any],
        *,
        min_pixels: int = 25,
        light: float = 0.2,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.pixels = nn.Conv2d(detector.backbone.out_channels, len(MASK_CLASSES), 1)
        self._options, self._min_pixels, self._light = dict(options), min_pixels, light
        self._pretrained = pretrained

    def collate(self, batch: Batch, targets: Mapping[str, Any], chance: Chance) -> MaskBatch:
        """Return images with the boxes, classes and masks of their instances, augmented."""
        del targets
        device = self.pixels.weight.device
        collated = MaskBatch([], [], [])
        for sample, generator in zip(batch.samples, chance.generators(), strict=True):
            light, mirror = torch.rand(2, generator=generator), torch.rand((), generator=generator)
            image = self._lit(sample.image.to(device).float() / 255, light)
            panoptic = _panoptic(sample)
            found = instances_of(panoptic, self._min_pixels)
            boxes, masks, classes = found.boxes, found.masks, _MASK_OF[panoptic.semantic_class.long()]
            if float(mirror) < 0.5:
                image, masks, classes = image.flip(-1), masks.flip(-1), classes.flip(-1)
                width = image.shape[-1]
                boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
            collated.images.append(image)
            collated.classes.append(classes.to(device))
            collated.targets.append(
                {"boxes": boxes.to(device), "labels": found.labels.to(device), "masks": masks.to(device).byte()}
            )
        return collated

    def forward(self, batch: MaskBatch, progress: float) -> dict[str, Loss]:
        """Return classifier, box_reg, mask, objectness and rpn_box_reg, torchvision's, and pixels."""
        del progress
        with CapturedFeatures(self.detector) as captured:
            found: dict[str, Tensor] = self.detector(batch.images, batch.targets)
        losses = {name.removeprefix("loss_"): Loss(value) for name, value in found.items()}
        pixels = self._pixel_loss(batch.classes, captured.images, captured.finest)
        return {**losses, "pixels": Loss(pixels)}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters; Muon optimizes the weights between the first and the output layers."""
        detector = self.detector
        inside = [detector.backbone, detector.roi_heads.box_head, detector.roi_heads.mask_head]
        # The first matrix of a trunk, whichever, faces the image.
        entrance = next(weight for weight in detector.backbone.body.parameters() if weight.ndim > 1)
        # Convolutions in groups, and tables, are no whole matrices.
        matrices = {
            id(layer.weight)
            for layer in detector.modules()
            if isinstance(layer, nn.Linear) or (isinstance(layer, _Convolution) and layer.groups == 1)
        }
        hidden = [
            weight
            for part in inside
            for weight in part.parameters()
            if id(weight) in matrices and weight.requires_grad and weight is not entrance
        ]
        given = list(detector.backbone.body.parameters()) if self._pretrained else []
        return [ParameterGroup("mask_rcnn", list(self.parameters()), hidden, given)]

    def product(self) -> MaskRCNN:
        """Return the detector."""
        return self.detector

    def config(self) -> str:
        """Return the detector's configuration as JSON."""
        return json.dumps(self._options)

    def _pixel_loss(self, classes: list[Tensor], images: ImageList, finest: Tensor) -> Tensor:
        """Return the cross-entropy of each image's classes int64 [H, W], scaled and padded as the network does."""
        height, width = images.tensors.shape[-2:]
        truth = torch.full((len(classes), height, width), IGNORED, device=finest.device)
        for here, labels, (rows, columns) in zip(truth, classes, images.image_sizes, strict=True):
            scaled = functional.interpolate(labels[None, None].float(), (rows, columns), mode="nearest-exact")
            here[:rows, :columns] = scaled[0, 0].long()
        logits = functional.interpolate(self.pixels(finest).float(), (height, width), mode="bilinear")
        weights = torch.tensor(_PIXEL_WEIGHTS, device=finest.device)
        # A batch in which no pixel is labelled would divide by zero.
        return functional.cross_entropy(logits, truth, weights, ignore_index=IGNORED, reduction="sum") / (
            functional.pad(weights, (0, IGNORED + 1 - len(weights)))[truth].sum().clamp(min=1)
        )

    def _lit(self, image: Tensor, drawn: Tensor) -> Tensor:
        brightness, contrast = (1 + self._light * (2 * drawn - 1)).tolist()
        gray = image.mean()
        return (((image - gray) * contrast + gray) * brightness).clamp(0, 1)


def has_panoptic(sample: Sample) -> bool:
    """Return whether the image has panoptic labels; one without any instance counts, it shows background."""
    return sample.panoptic is not None


def _panoptic(sample: Sample) -> Panoptic:
    if sample.panoptic is None:
        raise TrainingError("a sample without panoptic labels: ask `has_panoptic` first")
    return sample.panoptic
