"""Mask R-CNN learns boxes and masks of the vehicles, pedestrians and cyclists that panoptic labels tell apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList

from datalake.sample import Panoptic, Sample
from teachers.classes import CAMERA_TO_MASK, IGNORED, MASK_CLASSES
from teachers.training.instances import instances_of
from teachers.training.overheard import Overheard
from training.errors import TrainingError

_MASK_OF = torch.tensor(CAMERA_TO_MASK)
# Of every hundred pixels some ninety are background, eight vehicles, and all pedestrians and cyclists share one.
_PIXEL_WEIGHTS = (0.5, 1.0, 3.0, 5.0)


class MaskTask:
    """The five losses of Mask R-CNN (He et al. 2017) and one more, on pictures that are mirrored and lit at random.

    The sixth, `loss_pixels`, asks a 1 x 1 convolution on the finest level of the pyramid for the class of every pixel.
    Boxes and masks tell a backbone that starts from nothing very little about the thousands of cells around them; this
    tells it something about each (as the semantic branch of Chen et al., HTC, 2019). The layer is not part of the
    teacher.

    min_pixels: smaller instances are background. A few pixels are nothing that a stride of 4 could outline.
    light: brightness and contrast vary by a factor within 1 ± this
    """

    def __init__(self, detector: MaskRCNN, *, min_pixels: int = 25, light: float = 0.2) -> None:
        self._detector = detector
        self._pixels = nn.Conv2d(detector.backbone.out_channels, len(MASK_CLASSES), 1)
        self._pixels.to(next(detector.parameters()).device)
        self._learning = nn.ModuleDict({"detector": detector, "pixels": self._pixels})
        self._min_pixels, self._light = min_pixels, light

    @property
    def network(self) -> nn.Module:
        """The detector, and what learns beside it."""
        return self._learning

    def hidden_weights(self) -> list[nn.Parameter]:
        """Return the weights between the first layer and those that answer."""
        detector = self._detector
        inside = [detector.backbone, detector.roi_heads.box_head, detector.roi_heads.mask_head]
        entrance = detector.backbone.body.conv1.weight
        return [
            weight
            for part in inside
            for weight in part.parameters()
            if weight.ndim > 1 and weight.requires_grad and weight is not entrance
        ]

    def is_labelled(self, sample: Sample) -> bool:
        """Return whether the picture has panoptic labels; one without any instance counts, it shows background."""
        return sample.panoptic is not None

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return loss_classifier, loss_box_reg, loss_mask, loss_objectness and loss_rpn_box_reg, and loss_pixels."""
        device = next(self._detector.parameters()).device
        pictures, targets, classes = [], [], []
        for sample in samples:
            picture = self._lit(sample.image.to(device).float() / 255)
            panoptic = _panoptic(sample)
            found = instances_of(panoptic, self._min_pixels)
            boxes, masks, classes_here = found.boxes, found.masks, _MASK_OF[panoptic.semantic_class.long()]
            if float(torch.rand(())) < 0.5:
                picture, masks, classes_here = picture.flip(-1), masks.flip(-1), classes_here.flip(-1)
                width = picture.shape[-1]
                boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
            pictures.append(picture)
            classes.append(classes_here.to(device))
            targets.append(
                {"boxes": boxes.to(device), "labels": found.labels.to(device), "masks": masks.to(device).byte()}
            )
        with Overheard(self._detector) as overheard:
            losses: dict[str, Tensor] = self._detector(pictures, targets)
        return {**losses, "loss_pixels": self._pixel_loss(classes, overheard.pictures, overheard.finest)}

    def _pixel_loss(self, classes: list[Tensor], pictures: ImageList, finest: Tensor) -> Tensor:
        """Return the cross-entropy of each picture's classes int64 [H, W], scaled and padded as the network does."""
        height, width = pictures.tensors.shape[-2:]
        truth = torch.full((len(classes), height, width), IGNORED, device=finest.device)
        for here, labels, (rows, columns) in zip(truth, classes, pictures.image_sizes, strict=True):
            scaled = functional.interpolate(labels[None, None].float(), (rows, columns), mode="nearest-exact")
            here[:rows, :columns] = scaled[0, 0].long()
        logits = functional.interpolate(self._pixels(finest).float(), (height, width), mode="bilinear")
        weights = torch.tensor(_PIXEL_WEIGHTS, device=finest.device)
        # A batch in which no pixel is labelled would divide by zero.
        return functional.cross_entropy(logits, truth, weights, ignore_index=IGNORED, reduction="sum") / (
            functional.pad(weights, (0, IGNORED + 1 - len(weights)))[truth].sum().clamp(min=1)
        )

    def _lit(self, picture: Tensor) -> Tensor:
        brightness, contrast = (1 + self._light * (2 * torch.rand(2) - 1)).tolist()
        grey = picture.mean()
        return (((picture - grey) * contrast + grey) * brightness).clamp(0, 1)


def _panoptic(sample: Sample) -> Panoptic:
    if sample.panoptic is None:
        raise TrainingError("a sample without panoptic labels: ask `is_labelled` first")
    return sample.panoptic
