"""Non-maximum suppression of many groups of boxes at once."""

from __future__ import annotations

import math
from itertools import repeat

import torch
from torch import Tensor
from torchvision.ops import nms

from training.boxes import pairwise_iou

# The score of what is not there, below all others.
NOTHING = -1.0

# Overlaps that are computed at a time on a GPU.
_MOST_PAIRS = 1 << 26
# Rounds after which a GPU is asked whether anything still changes, which it has to be waited for.
_ROUNDS = 16


@torch.no_grad()
def suppressed(boxes: Tensor, scores: Tensor, most_iou: float, kinds: Tensor | None = None) -> Tensor:
    """Return the scores [..., N], NOTHING where a better box of the same group has an IoU above `most_iou`.

    boxes: float32 [..., N, 4], each leading index a group of its own
    scores: float32 [..., N] of at least 0, or NOTHING: such a box suppresses no other
    kinds: int64 [..., N]; of a group only boxes of the same kind suppress each other. None: all are of one

    What is kept is what torchvision's `nms` keeps of each group by itself: boxes are not moved apart, which rounds.
    """
    groups, of_groups = boxes.reshape(-1, *boxes.shape[-2:]), scores.reshape(-1, scores.shape[-1])
    of_kinds = None if kinds is None else kinds.reshape(of_groups.shape)
    if boxes.device.type == "cpu":
        kept = kept_one_by_one(groups, of_groups, most_iou, of_kinds)
    else:
        some = max(1, _MOST_PAIRS // max(1, groups.shape[1] ** 2))
        parts = zip(groups.split(some), of_groups.split(some), strict=True)
        alike = iter(of_kinds.split(some)) if of_kinds is not None else repeat(None)
        kept = torch.cat([kept_in_rounds(*part, most_iou, next(alike)) for part in parts])
    return torch.where(kept.view_as(scores), scores, NOTHING)


def kept_one_by_one(boxes: Tensor, scores: Tensor, most_iou: float, kinds: Tensor | None = None) -> Tensor:
    """Return which boxes [G, N, 4] with scores [G, N] stay, bool [G, N], by torchvision's operator for each group.

    kinds: int64 [G, N]
    """
    if kinds is not None:
        # The operator knows no kinds. They are moved apart; in float64, where far from the origin is as exact as near.
        boxes, scores = boxes.double(), scores.double()
        boxes = boxes + (kinds * (boxes.max() + 1))[..., None]
    none = torch.zeros_like(scores[0], dtype=torch.bool)
    return torch.stack(
        [none.index_fill(0, nms(*group, most_iou), True) for group in zip(boxes.unbind(), scores.unbind(), strict=True)]
    )


def kept_in_rounds(boxes: Tensor, scores: Tensor, most_iou: float, kinds: Tensor | None = None) -> Tensor:
    """Return the same for all groups at once.

    torchvision's operator goes through its boxes one after the other on a GPU, and has it waited for after each group.
    Here all boxes are decided on in each round, from what the round before says of the better ones. After n rounds the
    best n of each group are right, and where a round changes nothing all are; of chains of boxes, each of which
    suppresses the next, the longest counts.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranked = boxes.gather(1, order[..., None].expand_as(boxes))
    overlap = pairwise_iou(ranked, ranked) > most_iou
    if kinds is not None:
        of_rank = kinds.gather(1, order)
        overlap &= of_rank[:, :, None] == of_rank[:, None]
    # Half precision: of how many better boxes suppress one it only matters whether there are any.
    better = overlap.half().triu_(1)
    kept = everything = better.new_ones(len(boxes), 1, boxes.shape[1])
    with torch.autocast(boxes.device.type, enabled=False):
        for _ in range(math.ceil(boxes.shape[1] / _ROUNDS)):
            for _ in range(_ROUNDS):
                # One less how many suppress it: one, or nothing.
                before, kept = kept, torch.baddbmm(everything, kept, better, alpha=-1).clamp_(min=0)
            if torch.equal(before, kept):
                break
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, kept[:, 0] > 0)
