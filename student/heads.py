"""What it is, where exactly, and how far: torchvision's RoI heads with a depth head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign

from student.config import StudentConfig
from student.depth import decode_depth, encode_depth
from student.detections import Detections
from student.sampling import RepeatableSampler

_CELLS = 7
_POSITIVE_SHARE = 0.25
_BOX_BETA = 1 / 9
_GEOMETRY = 6
# Side of the boxes that level 4, stride 16, is made for; torchvision's 224 is made for pictures three times as wide.
_CANONICAL_PX = 128


class BoxPredictor(FastRCNNPredictor):
    """torchvision's classifier and box regression; the answers are float32 whatever they are computed in."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits [N, M] and box deltas [N, 4M] for features [N, C]."""
        logits, deltas = super().forward(x)
        return logits.float(), deltas.float()


class DepthHead(nn.Module):
    """Tells a depth for each class (paper, section 3.2: one depth per class and detection).

    The default student also gets the box: pooled features have lost where in the picture, and how large, an object
    is, which on a road says most about its distance. The paper's does not. All of this is float32 under autocast as
    well: bfloat16 would round a box's lower edge, and with it the distance, to whole pixels.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self._sees_box = config.preset == "classroom"
        inputs = config.head_width + (_GEOMETRY if self._sees_box else 0)
        self.hidden = nn.Linear(inputs, config.head_width // 2)
        self.tell = nn.Linear(config.head_width // 2, config.classes)
        # Starts in the middle of the road rather than at the bumper.
        nn.init.constant_(self.tell.bias, 0.7)

    def forward(self, features: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return encoded depths float32 [N, M] of boxes [N, 4], whose pooled features are [N, C]."""
        features = features.float()
        if self._sees_box:
            features = torch.cat([features, _geometry(boxes, image_size)], 1)
        with torch.autocast(features.device.type, enabled=False):
            told: Tensor = self.tell(self.hidden(features).relu())
        return told


class DepthRoIHeads(RoIHeads):
    """Faster R-CNN's second stage (Ren et al. 2015) with a depth per class.

    Losses are divided by the fixed size of a sample, so that a picture's share does not depend on the others. The
    depth's is the mean over positive boxes with a known depth: a box without a lidar point teaches nothing.
    """

    def __init__(self, config: StudentConfig, level_names: list[str]) -> None:
        super().__init__(
            MultiScaleRoIAlign(level_names, _CELLS, 2, canonical_scale=_CANONICAL_PX, canonical_level=4),
            TwoMLPHead(config.width * _CELLS**2, config.head_width),
            BoxPredictor(config.head_width, config.classes),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.roi_batch,
            positive_fraction=_POSITIVE_SHARE,
            bbox_reg_weights=None,
            score_thresh=config.min_score,
            nms_thresh=0.5,
            detections_per_img=config.detections,
        )
        self.fg_bg_sampler = RepeatableSampler(config.roi_batch, _POSITIVE_SHARE)
        self.depth_head = DepthHead(config)
        self._depth_beta = 1.0 if config.preset == "paper" else 0.05
        self._max_depth_m = config.max_depth_m

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_size: tuple[int, int],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Return the losses `classification`, `box` and `depth`, means over the pictures.

        targets: `boxes` float32 [M, 4], `labels` int64 [M] and `depth_m` float32 [M] of each picture
        """
        chosen, matched, labels, deltas = self.select_training_samples(proposals, targets)
        pictures, classes = len(labels), torch.cat(labels)
        pooled = self.box_head(self.box_roi_pool(features, chosen, [image_size] * pictures))
        logits, regression = self.box_predictor(pooled)
        positive = torch.where(classes > 0)[0]
        rows = self.fg_bg_sampler.size * pictures
        regression = regression.view(len(regression), -1, 4)[positive, classes[positive]]
        box = smooth_l1_loss(regression, torch.cat(deltas)[positive], beta=_BOX_BETA, reduction="sum")
        return {
            "classification": cross_entropy(logits, classes, reduction="sum") / rows,
            "box": box / rows,
            "depth": self._depth_loss(pooled, chosen, matched, labels, image_size, targets),
        }

    def _depth_loss(
        self,
        pooled: Tensor,
        chosen: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        image_size: tuple[int, int],
        targets: list[dict[str, Tensor]],
    ) -> Tensor:
        depth_m = torch.cat(
            [
                target["depth_m"][rows]
                if len(target["depth_m"])
                else target["depth_m"].new_full((len(rows),), torch.nan)
                for target, rows in zip(targets, matched, strict=True)
            ]
        )
        classes = torch.cat(labels)
        # How many boxes of its own picture each row shares the picture's part of the mean with.
        counts = [
            int(((one > 0) & depth.isfinite()).sum())
            for one, depth in zip(labels, depth_m.split([len(one) for one in labels]), strict=True)
        ]
        shares = torch.cat(
            [depth_m.new_full((len(one),), 1 / max(1, count)) for one, count in zip(labels, counts, strict=True)]
        )
        known = torch.where((classes > 0) & depth_m.isfinite())[0]
        told = self.depth_head(pooled[known], torch.cat(chosen)[known], image_size)
        told = told.gather(1, classes[known, None])[:, 0]
        truth = encode_depth(depth_m[known], self._max_depth_m)
        error = smooth_l1_loss(told, truth, beta=self._depth_beta, reduction="none")
        return (error * shares[known]).sum() / len(labels)

    def detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_size: tuple[int, int]
    ) -> list[Detections]:
        """Return what is found in each picture. Depth is told of the final boxes, as masks are in Mask R-CNN."""
        shapes = [image_size] * len(proposals)
        logits, regression = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, shapes)))
        boxes, scores, classes = self.postprocess_detections(logits, regression, proposals, shapes)
        pooled = self.box_head(self.box_roi_pool(features, boxes, shapes))
        told = self.depth_head(pooled, torch.cat(boxes), image_size)
        told = told.gather(1, torch.cat(classes)[:, None])[:, 0]
        depths_m = decode_depth(told, self._max_depth_m).split([len(one) for one in boxes])
        return [Detections(*found) for found in zip(boxes, classes, scores, depths_m, strict=True)]


def _geometry(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return float32 [N, 6]: the boxes' edges as shares of the picture, and the logarithms of width and height."""
    height, width = image_size
    shares = boxes.float() / boxes.new_tensor([width, height, width, height])
    sizes = (shares[:, 2:] - shares[:, :2]).clamp(min=1e-3).log()
    return torch.cat([shares, sizes], 1)
