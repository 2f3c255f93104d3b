"""Where something might be: torchvision's region proposal network, with losses that do not depend on the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from student.config import AnchorShapes, StudentConfig
from student.sampling import RepeatableSampler

_POSITIVE_SHARE = 0.5
_BETA = 1 / 9


class ProposalHead(RPNHead):
    """torchvision's head; its answers are float32 whatever it is computed in.

    bfloat16 tells the columns of a picture apart to within two pixels only.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness [B, A, h, w] and box deltas [B, 4A, h, w] of each level."""
        objectness, deltas = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in deltas]


class ProposalNetwork(RegionProposalNetwork):
    """Faster R-CNN's first stage (Ren et al. 2015).

    The losses are sums over the sampled anchors divided by the size of a sample, then means over pictures; torchvision
    divides by the anchors sampled in the whole batch, which makes a picture's share depend on the others.
    """

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of objectness [N] and of the box deltas [N, 4] of all anchors of all pictures."""
        positive, negative = (torch.cat(masks).bool() for masks in self.fg_bg_sampler(labels))
        anchors = self.fg_bg_sampler.size * len(labels)
        sampled = positive | negative
        truth = torch.cat(labels)[sampled]
        found = binary_cross_entropy_with_logits(objectness.flatten()[sampled], truth, reduction="sum")
        boxes = smooth_l1_loss(
            pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], beta=_BETA, reduction="sum"
        )
        return found / anchors, boxes / anchors


def anchor_generator(shapes: AnchorShapes) -> AnchorGenerator:
    """Return torchvision's generator of anchors of these shapes."""
    return AnchorGenerator(shapes.sizes, (shapes.ratios,) * len(shapes.sizes))


def build_proposal_network(config: StudentConfig) -> ProposalNetwork:
    """Return the untrained network."""
    anchors = anchor_generator(config.anchors)
    network = ProposalNetwork(
        anchors,
        ProposalHead(config.width, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7 if config.preset == "paper" else 0.5,
        bg_iou_thresh=0.3,
        batch_size_per_image=config.rpn_batch,
        positive_fraction=_POSITIVE_SHARE,
        pre_nms_top_n={"training": 2 * config.proposals, "testing": 2 * config.proposals},
        post_nms_top_n={"training": config.proposals, "testing": config.proposals},
        nms_thresh=0.7,
    )
    network.fg_bg_sampler = RepeatableSampler(config.rpn_batch, _POSITIVE_SHARE)
    return network
