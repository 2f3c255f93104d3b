"""A detector of torchvision as a teacher: Faster R-CNN on ResNet-50 with COCO's classes, which become the student's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad
from torchvision.models.detection import (
    FasterRCNN,
    MaskRCNN,
    fasterrcnn_resnet50_fpn_v2,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from student.backbone import Features
from student.config import grid_of
from student.detections import CLASS_NAMES
from student.roi_heads import BatchDetections, RoIPredictions, detections_of
from student.rpn import Proposals
from teachers.card import TeacherError
from teachers.classes import COCO_LABELS, COCO_TO_TYPE
from teachers.transfer import on_device
from training.pooling import LevelPool, rois_of

ARCHITECTURE = "torchvision_faster_rcnn"

# As torchvision calls the functions that build them.
TorchvisionNetwork = Literal[
    "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"
]

# As torchvision counts them, with background and gaps.
_COCO_CATEGORIES = 91
# The logit of a class that COCO does not have: its probability is 0 at any temperature, and the logit is finite.
_NEVER = -1e4
# Side of the boxes that torchvision's heads expect on the level of stride 16.
_CANONICAL_PX = 224


def _members() -> tuple[tuple[int, ...], ...]:
    named = [tuple(COCO_LABELS[name] for name in COCO_TO_TYPE if COCO_TO_TYPE[name] == kind) for kind in CLASS_NAMES]
    kept = {label for labels in named for label in labels}
    return (tuple(label for label in range(_COCO_CATEGORIES) if label not in kept), *named[1:])


# Of each of the student's classes the labels of COCO that mean it. All that mean none are the student's background,
# and so is COCO's own. SIGN has none: COCO has stop signs only (`teachers.classes`).
MEMBERS = _members()


@dataclass(frozen=True, slots=True)
class TorchvisionPyramid:
    """Which levels there are: torchvision's of strides 4, 8, 16 and 32; that of 64 serves its proposals alone."""

    width: int = 256
    stride: int = 4
    levels: int = 4

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width in cells of the first level; raises StudentError as `StudentConfig.grid` does."""
        return grid_of(height, width, self.stride, self.stride << (self.levels - 1))


class TorchvisionDetector(nn.Module):
    """torchvision's Faster R-CNN with COCO's classes, asked as a student is.

    The images are the student's: those of its size, normalized as torchvision does. torchvision would first scale them
    to 800 pixels, but then cells would not be the student's any more. So objects are smaller here than those that the
    network has learned from.

    name: which of TorchvisionNetwork without masks it is, for `load`
    network: the same
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, network: FasterRCNN) -> None:
        super().__init__()
        self.config = TorchvisionPyramid()
        self.name, self.network = name, network
        self.heads = TorchvisionHeads(network)
        for what, values in (("mean", network.transform.image_mean), ("std", network.transform.image_std)):
            self.register_buffer(what, torch.tensor(values)[:, None, None], persistent=False)

    @staticmethod
    def load(name: str, state: Mapping[str, Tensor], source: str) -> TorchvisionDetector:
        """Return the detector whose weights these are, all of them; of a Mask R-CNN without its masks.

        name: one of TorchvisionNetwork
        source: where the weights are from, for errors

        Raises TeacherError where there is no such network, or the weights are not exactly its own.
        """
        if name not in (known := get_args(TorchvisionNetwork)):
            raise TeacherError(f"{source}: no network {name!r}; expected one of {', '.join(known)}")
        network = _build(name)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            lines = " ".join(str(error).split())
            raise TeacherError(f"{source}: these are not the weights of {name} on COCO: {lines[:400]}") from error
        if isinstance(network, MaskRCNN):
            heads = network.roi_heads
            heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = None
        return TorchvisionDetector(name.replace("maskrcnn", "fasterrcnn"), network)

    def features(self, images: Tensor) -> Features:
        """Return the pyramid of images uint8 or float32 within 0 … 1 [B, 3, H, W].

        Raises StudentError where an image's size does not divide into cells.
        """
        self.config.grid(images.shape[-2], images.shape[-1])
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        levels = self.network.backbone((scaled - self.mean) / self.std)
        return Features(tuple(levels[str(number)].float() for number in range(self.config.levels)), {})

    @torch.no_grad()
    def propose(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> Proposals:
        """Return its proposals in images of (height, width) pixels: those of torchvision's own network."""
        named = OrderedDict((str(number), level) for number, level in enumerate(levels))
        # As torchvision's pyramid makes it of the level before.
        named["pool"] = max_pool2d(levels[-1], 1, 2)
        images = ImageList(levels[0].new_empty(len(levels[0]), 0, *image_size), [image_size] * len(levels[0]))
        boxes, _ = self.network.rpn(images, named)
        most = max(map(len, boxes))
        valid = [one.new_ones(len(one), dtype=torch.bool) for one in boxes]
        return Proposals(
            torch.stack([pad(one, (0, 0, 0, most - len(one))) for one in boxes]),
            torch.stack([pad(one, (0, most - len(one))) for one in valid]),
        )


class TorchvisionHeads:
    """The box head of a `TorchvisionDetector`, whose predictions are of the student's classes; it holds no weights."""

    def __init__(self, network: FasterRCNN) -> None:
        self._roi_heads = network.roi_heads
        self._pool = LevelPool(TorchvisionPyramid().stride, canonical_px=_CANONICAL_PX)

    def predict(self, levels: Sequence[Tensor], boxes: Tensor) -> RoIPredictions:
        """Return what the box head says of boxes [B, S, 4] in the images of levels [B, C, h, w]; see `folded`."""
        pooled = self._roi_heads.box_head(self._pool(levels, rois_of(boxes)))
        logits, deltas = folded(*(values.float() for values in self._roi_heads.box_predictor(pooled)))
        shape = boxes.shape[:2]
        return RoIPredictions(pooled.view(*shape, -1), logits.view(*shape, -1), deltas.view(*shape, -1))

    def find(self, levels: Sequence[Tensor], proposals: Proposals, image_size: tuple[int, int]) -> BatchDetections:
        """Return the objects that the images of levels [B, C, h, w] show, by torchvision's thresholds."""
        predictions = self.predict(levels, proposals.boxes)
        heads = self._roi_heads
        return detections_of(predictions, proposals, image_size, heads.score_thresh, heads.detections_per_img)


def folded(logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [..., M] and deltas [..., 4M] of the student's M classes for those of COCO's 91, [..., 91 · 4].

    A class's probability is the sum of those of its members (`MEMBERS`): log-sum-exp of logits. Its box is that of its
    most likely member. The student's deltas and torchvision's have the same weights, 10, 10, 5 and 5. A class without
    members has a logit of -10,000, and so a probability of 0, and deltas of 0.
    """
    boxes = deltas.unflatten(-1, (_COCO_CATEGORIES, 4))
    of_classes, of_boxes = [], []
    for labels in MEMBERS:
        if not labels:
            of_classes.append(torch.full_like(logits[..., 0], _NEVER))
            of_boxes.append(torch.zeros_like(boxes[..., 0, :]))
            continue
        index = on_device(torch.tensor(labels), logits.device)
        members = logits[..., index]
        best = members.argmax(-1)[..., None, None].expand(*members.shape[:-1], 1, 4)
        of_classes.append(members.logsumexp(-1))
        of_boxes.append(boxes[..., index, :].gather(-2, best)[..., 0, :])
    return torch.stack(of_classes, -1), torch.cat(of_boxes, -1)


def _build(name: str) -> FasterRCNN:
    """Return the network with random weights; nothing is downloaded."""
    if name == "fasterrcnn_resnet50_fpn_v2":
        return fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=_COCO_CATEGORIES)
    if name == "maskrcnn_resnet50_fpn_v2":
        return maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=_COCO_CATEGORIES)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    # The published weights were trained with norms that added nothing to the variance.
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    kind = MaskRCNN if name.startswith("mask") else FasterRCNN
    return kind(backbone, num_classes=_COCO_CATEGORIES)
