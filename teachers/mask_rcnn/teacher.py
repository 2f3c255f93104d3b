"""The mask teacher: Mask R-CNN's detections as one class per cell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import fsspec
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from datalake.sample import Sample
from teachers.card import TeacherCard, TeacherError, read_card, read_weights
from teachers.classes import CAMERA_TO_MASK, COCO_LABELS, COCO_TO_TYPE, MASK_CLASSES
from teachers.confusion import Confusion
from teachers.mask_rcnn.batched_boxes import batch_boxes
from teachers.mask_rcnn.captured_features import CapturedFeatures
from teachers.mask_rcnn.class_map import ClassMap, class_map
from teachers.mask_rcnn.mask_grid import cell_pixels, masks_at
from teachers.mask_rcnn.network import slim_mask_rcnn
from teachers.mask_rcnn.timm_backbone import TimmBackbone
from teachers.spvnas.checkpoint import read_state_dict
from teachers.spvnas.state_dict_adapter import CheckpointError
from teachers.target import Target
from teachers.transfer import joined_on_device, on_device
from training.precision import uses_bfloat16
from training.timm_model import published_normalization

ARCHITECTURE = "mask_rcnn"
_COCO_CATEGORIES = 91  # as torchvision counts them, with background and gaps
_PYRAMID_LEVELS = 5
_TIMM = "timm:"
_FOUND = ("boxes", "labels", "scores", "masks")

# What torchvision's COCO networks say, by label number: the class of masks, or None where it is not kept.
COCO_MEANING = tuple(
    next((COCO_TO_TYPE[name] for name, number in COCO_LABELS.items() if number == label), None)
    for label in range(_COCO_CATEGORIES)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRcnnConfig:
    """All that is needed to build a Mask R-CNN and to read its answers. The defaults suit images of 384 x 256."""

    # `v1` and `v2` are torchvision's two networks on ResNet-50, v1 with frozen norms as its COCO weights have them;
    # `small` is v1's heads on `backbone`, with norms that learn; `slim` is a fifth as large and answers about ten times
    # faster on a CPU.
    variant: Literal["v1", "v2", "small", "slim"] = "small"
    # For each of the network's labels, 0 being its background, the class that it means, or None: it is not kept.
    meaning: tuple[str | None, ...] = (None, *MASK_CLASSES[1:])
    # Images are scaled so that their shorter side has so many pixels,
    min_size: int = 256
    # and their longer side at most so many.
    max_size: int = 384
    # The trunk of `small`: any of torchvision's ResNets, or `timm:NAME` for a model of timm's, such as timm:resnet50.
    backbone: str = "resnet18"
    # Mean of red, green and blue, within 0 … 1, by which images are normalized; by default that which the published
    # weights of the trunk were trained with.
    image_mean: tuple[float, float, float] | None = None
    # Their standard deviation; by default likewise.
    image_std: tuple[float, float, float] | None = None
    # Side of the anchors in pixels on each of the five pyramid levels (strides 4 … 64), of `small` and `slim`.
    anchor_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    # Detections below this confidence are dropped.
    score: float = 0.05
    # Detections per image that are kept, the most confident.
    detections: int = 100

    def __post_init__(self) -> None:
        if unknown := sorted({name for name in self.meaning if name is not None} - set(MASK_CLASSES[1:])):
            raise TeacherError(f"meaning: unknown classes {', '.join(unknown)}; expected {', '.join(MASK_CLASSES[1:])}")
        if not self.meaning or self.meaning[0] is not None:
            raise TeacherError("meaning: label 0 is the network's background and is never detected; give None for it")
        if len(self.anchor_sizes) != _PYRAMID_LEVELS:
            raise TeacherError(f"anchor_sizes: expected {_PYRAMID_LEVELS}, got: {len(self.anchor_sizes)}")
        if self.timm_name is not None and self.variant != "small":
            raise TeacherError(f"backbone {self.backbone}: only variant small takes one; {self.variant} has its own")

    @staticmethod
    def coco(variant: Literal["v1", "v2"] = "v2", score: float = 0.5) -> MaskRcnnConfig:
        """Return the configuration of torchvision's COCO weights.

        score: our choice; every faint detection that is kept overwrites background
        """
        return MaskRcnnConfig(
            variant=variant,
            meaning=COCO_MEANING,
            min_size=800,
            max_size=1333,
            score=score,
        )

    @staticmethod
    def from_options(options: Mapping[str, Any]) -> MaskRcnnConfig:
        """Return the configuration in a card's `options`; raises TeacherError where they are not one."""
        try:
            lists = {name: tuple(options[name]) for name in ("meaning", "anchor_sizes")}
            colors = {name: tuple(options[name]) for name in ("image_mean", "image_std") if options.get(name)}
            return MaskRcnnConfig(**{**options, **lists, **colors})
        except (KeyError, TypeError) as error:
            raise TeacherError(f"the card's options are not those of a Mask R-CNN: {error}") from error

    @property
    def timm_name(self) -> str | None:
        """The name of the trunk's model where it is timm's."""
        return self.backbone.removeprefix(_TIMM) if self.backbone.startswith(_TIMM) else None

    def resolved(self) -> MaskRcnnConfig:
        """Return the same with what follows from the trunk's name written out; raises TimmError where timm has none."""
        if self.timm_name is None or None not in (self.image_mean, self.image_std):
            return self
        mean, std = published_normalization(self.timm_name)
        return replace(self, image_mean=self.image_mean or mean, image_std=self.image_std or std)

    def to_options(self) -> dict[str, Any]:
        """Return the plain values of a card's `options`."""
        options: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return options


def build_network(config: MaskRcnnConfig) -> MaskRCNN:
    """Return the network with random weights; nothing is downloaded. Every layer of `small` and `v2` is trainable.

    In training it takes and returns what torchvision's Mask R-CNN does.
    """
    settings: dict[str, Any] = {
        "num_classes": len(config.meaning),
        "min_size": config.min_size,
        "max_size": config.max_size,
        "box_score_thresh": config.score,
        "box_detections_per_img": config.detections,
        "image_mean": config.image_mean and list(config.image_mean),
        "image_std": config.image_std and list(config.image_std),
    }
    anchors = AnchorGenerator(
        tuple((size,) for size in config.anchor_sizes), ((0.5, 1.0, 2.0),) * len(config.anchor_sizes)
    )
    if config.variant == "slim":
        network = slim_mask_rcnn(anchors=anchors, **settings)
    elif config.timm_name is not None:
        network = MaskRCNN(TimmBackbone(config.timm_name), rpn_anchor_generator=anchors, **settings)
    elif config.variant == "small":
        # The backbone starts untrained, so its norms have to learn as well: no frozen ones.
        backbone = resnet_fpn_backbone(
            backbone_name=config.backbone, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
        )
        network = MaskRCNN(backbone, rpn_anchor_generator=anchors, **settings)
    elif config.variant == "v1":
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
        )
        # The published weights were trained with norms that added nothing to the variance.
        for module in backbone.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = 0.0
        network = MaskRCNN(backbone, **settings)
    elif config.variant == "v2":
        network = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **settings)
    else:
        raise TeacherError(f"variant: expected v1, v2, small or slim, got: {config.variant!r}")
    return network


class MaskRcnnTeacher:
    """A Mask R-CNN as a teacher: one of `MASK_CLASSES` per cell, and how sure it is; every cell is valid.

    A cell takes the class of the image's pixel at its center.
    """

    def __init__(self, card: TeacherCard, network: MaskRCNN) -> None:
        if card.kind != "classification" or card.class_names != MASK_CLASSES:
            raise TeacherError(
                f"teacher {card.name}: expected classes {', '.join(MASK_CLASSES)}, got: {', '.join(card.class_names)}"
            )
        self.card = card
        self.network = network.eval().requires_grad_(False)
        batch_boxes(network)
        numbers = [0 if name is None else MASK_CLASSES.index(name) for name in _config(card).meaning]
        self._class_of_label = torch.tensor(numbers)

    @staticmethod
    def load(url: str, device: torch.device | str = "cpu") -> MaskRcnnTeacher:
        """Return the teacher in a folder; raises TeacherError where anything there does not fit together."""
        card = read_card(url)
        if card.architecture != ARCHITECTURE:
            raise TeacherError(f"{url}: expected architecture {ARCHITECTURE}, got: {card.architecture}")
        network = build_network(_config(card))
        _load_strictly(network, read_weights(url, card), url)
        return MaskRcnnTeacher(card, _placed(network, device))

    @staticmethod
    def load_coco(
        weights_url: str, config: MaskRcnnConfig | None = None, device: torch.device | str = "cpu"
    ) -> MaskRcnnTeacher:
        """Return a checkpoint that torchvision publishes (a file of torch.save) as a teacher; v2 by default."""
        config = config or MaskRcnnConfig.coco()
        try:
            state = read_state_dict(weights_url)
        except CheckpointError as error:
            raise TeacherError(str(error)) from error
        with fsspec.open(weights_url, "rb") as file:
            sha256 = hashlib.sha256(file.read()).hexdigest()
        network = build_network(config)
        _load_strictly(network, state, weights_url)
        card = TeacherCard(
            name="mask_rcnn",
            kind="classification",
            architecture=ARCHITECTURE,
            options=config.to_options(),
            channels=len(MASK_CLASSES),
            class_names=MASK_CLASSES,
            weights_sha256=sha256,
        )
        return MaskRcnnTeacher(card, _placed(network, device))

    @torch.no_grad()
    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return class numbers int64 [B, 1, height, width] with their confidence."""
        found = self._detect(samples)
        device = found.masks.device
        sizes = [sample.image.shape[1:] for sample in samples]
        distinct = list(dict.fromkeys(sizes))
        rows = torch.stack([cell_pixels(size[0], height, device) for size in distinct])
        columns = torch.stack([cell_pixels(size[1], width, device) for size in distinct])
        if len(distinct) > 1:
            which = torch.tensor([distinct.index(size) for size in sizes]).repeat_interleave(torch.tensor(found.counts))
            which = which.to(device)
            rows, columns = rows[which], columns[which]
        cells = _painted(found, masks_at(found.masks, found.boxes, rows, columns))
        classes, confidence = cells.classes[:, None], cells.confidence[:, None]
        return Target(
            tuple(sample.key for sample in samples), classes, torch.ones_like(classes, dtype=torch.bool), confidence
        )

    def confusion(self, samples: Sequence[Sample]) -> Confusion:
        """Return how the network names the pixels of samples with panoptic labels, at the image's own size."""
        classes = len(MASK_CLASSES)
        truth_of = torch.tensor(CAMERA_TO_MASK)
        counts = Confusion.empty(classes)
        labelled = [(sample, sample.panoptic) for sample in samples if sample.panoptic is not None]
        for found, (_, panoptic) in zip(self.class_maps([sample for sample, _ in labelled]), labelled, strict=True):
            counts += Confusion.of(truth_of[panoptic.semantic_class.long()], found.classes.cpu(), classes)
        return counts

    @torch.no_grad()
    def class_maps(self, samples: Sequence[Sample]) -> list[ClassMap]:
        """Return the map of each sample, of the size of its image."""
        if not samples:
            return []
        found = self._detect(samples)
        device = found.masks.device
        maps = []
        for sample, one in zip(samples, found.images(), strict=True):
            rows, columns = (torch.arange(float(side), device=device)[None] for side in sample.image.shape[1:])
            painted = _painted(one, masks_at(one.masks, one.boxes, rows, columns))
            maps.append(ClassMap(painted.classes[0], painted.confidence[0]))
        return maps

    def _detect(self, samples: Sequence[Sample]) -> _Detections:
        """Return what the network finds: its forward pass, but for pasting each mask into an image of its own.

        On a GPU that multiplies bfloat16 itself the layers do so, on a channels-last batch; boxes stay float32.
        """
        network = self.network.eval()
        device = next(network.parameters()).device
        lowered = _is_lowered(device)
        images = _scaled(network, samples, device)
        with (
            CapturedFeatures(network) if lowered else nullcontext(),
            torch.autocast(device.type, torch.bfloat16, lowered),
        ):
            features = network.backbone(images.tensors)
            proposals, _ = network.rpn(images, features)
            found, _ = network.roi_heads(features, proposals, images.image_sizes)
        counts = tuple(len(one["scores"]) for one in found)
        boxes, labels, scores, masks = (torch.cat([one[key] for one in found]) for key in _FOUND)
        # From the pixels of the scaled images to those of the samples; sizes are (height, width), boxes (x, y, x, y).
        sizes = torch.tensor([sample.image.shape[1:] for sample in samples], dtype=torch.float32)
        scale = (sizes / torch.tensor(images.image_sizes, dtype=torch.float32)).flip(1).repeat(1, 2)
        scale = scale.repeat_interleave(torch.tensor(counts), 0)
        classes = on_device(self._class_of_label, device)[labels]
        # What means nothing to the student is found nowhere: that needs no answer from the device.
        masks = masks[:, 0].float() * (classes > 0)[:, None, None]
        return _Detections(boxes * on_device(scale, device), classes, scores, masks, counts)


@dataclass(frozen=True, slots=True, eq=False)
class _Detections:
    """N detections in B images, those of one image beside each other.

    boxes: float32 [N, 4], in the samples' pixels; classes: int64 [N]; scores: float32 [N]
    masks: float32 [N, m, m], probabilities within the box
    counts: how many are of each image
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor
    masks: Tensor
    counts: tuple[int, ...]

    def images(self) -> Iterator[_Detections]:
        """Yield those of each image."""
        parts = (values.split(self.counts) for values in (self.boxes, self.classes, self.scores, self.masks))
        for count, boxes, classes, scores, masks in zip(self.counts, *parts, strict=True):
            yield _Detections(boxes, classes, scores, masks, (count,))


def _painted(found: _Detections, masks: Tensor) -> ClassMap:
    """Return the maps [B, h, w] of the images, from the detections' masks [N, h, w]."""
    if len(found.counts) == 1:
        return class_map(found.classes[None], found.scores[None], masks[None])
    # Every image gets room for as many detections; the last row answers where it has fewer.
    most, total = max(found.counts), len(masks)
    starts = (stop - count for stop, count in zip(accumulate(found.counts), found.counts, strict=True))
    rows = [
        [*range(start, start + count), *[total] * (most - count)]
        for start, count in zip(starts, found.counts, strict=True)
    ]
    index = on_device(torch.tensor(rows, dtype=torch.int64), masks.device)

    def by_image(values: Tensor) -> Tensor:
        return torch.cat([values, values.new_zeros(1, *values.shape[1:])])[index]

    return class_map(by_image(found.classes), by_image(found.scores), by_image(masks))


def _scaled(network: MaskRCNN, samples: Sequence[Sample], device: torch.device) -> ImageList:
    """Return the images as the network's own transform makes them; those of one size all at once."""
    transform = network.transform
    if len({sample.image.shape for sample in samples}) > 1:
        transformed: ImageList = transform([sample.image.to(device).float() / 255 for sample in samples])[0]
        return transformed
    images = joined_on_device([sample.image[None] for sample in samples], device).float() / 255
    # The transform would wait for a GPU to get these numbers.
    mean, deviation = on_device(torch.tensor([transform.image_mean, transform.image_std]), device)[..., None, None]
    height, width = images.shape[-2:]
    scale = min(transform.min_size[-1] / min(height, width), transform.max_size / max(height, width))
    images = interpolate((images - mean) / deviation, scale_factor=scale, mode="bilinear", recompute_scale_factor=True)
    height, width = images.shape[-2:]
    step = transform.size_divisible
    padded = pad(images, (0, -width % step, 0, -height % step))
    if device.type == "cuda":
        padded = padded.contiguous(memory_format=torch.channels_last)
    return ImageList(padded, [(height, width)] * len(samples))


def _config(card: TeacherCard) -> MaskRcnnConfig:
    return MaskRcnnConfig.from_options(card.options)


def _load_strictly(network: MaskRCNN, state: Mapping[str, Tensor], source: str) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise TeacherError(
            f"{source} does not fit the network that the card describes: {' '.join(lines)[:500]}"
        ) from error


def _is_lowered(device: torch.device) -> bool:
    # On a CPU answers are the same everywhere, whether or not it multiplies bfloat16.
    return device.type == "cuda" and uses_bfloat16("auto", device)


def _placed(network: MaskRCNN, device: torch.device | str) -> MaskRCNN:
    """Return the network where and how it is fastest: a GPU's bfloat16 convolutions want channels last."""
    device = torch.device(device)
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    return network.to(device, memory_format=layout)
