"""A Mask R-CNN that trains from scratch on two CPU cores, and predicts there within a student's step."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock, ResNet

_PYRAMID = 64
_BOX_HEAD = 256
# Cells of a box's features along each side: torchvision's own number.
_BOX_CELLS = 7
_PROPOSALS = {
    "rpn_pre_nms_top_n_train": 500,
    "rpn_post_nms_top_n_train": 200,
    "rpn_pre_nms_top_n_test": 300,
    "rpn_post_nms_top_n_test": 100,
}


def slim_mask_rcnn(num_classes: int, anchors: AnchorGenerator, **settings: Any) -> MaskRCNN:
    """Return torchvision's Mask R-CNN (He et al. 2017) on a ResNet of one block a stage, with random weights.

    It has 6 M parameters in place of 31 M: a pyramid and heads of 64 channels, one hidden layer of 256 behind the
    boxes' features, two convolutions before the masks; and it takes 100 proposals. The norms are batch norms that
    learn, for the backbone starts untrained.
    """
    body = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=nn.BatchNorm2d)
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    backbone = BackboneWithFPN(body, layers, [64, 128, 256, 512], _PYRAMID)
    return MaskRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(_PYRAMID, anchors.num_anchors_per_location()[0]),
        box_head=TwoMLPHead(_PYRAMID * _BOX_CELLS**2, _BOX_HEAD),
        box_predictor=FastRCNNPredictor(_BOX_HEAD, num_classes),
        mask_head=MaskRCNNHeads(_PYRAMID, (_PYRAMID, _PYRAMID), 1),
        mask_predictor=MaskRCNNPredictor(_PYRAMID, _PYRAMID, num_classes),
        **_PROPOSALS,
        **settings,
    )
