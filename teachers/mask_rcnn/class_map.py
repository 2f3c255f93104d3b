"""From many detections to one class per pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_IN_MASK = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class ClassMap:
    """What each pixel of an image, or of each of several, shows.

    classes: int64 [..., H, W], 0 for background
    confidence: float32 [..., H, W], the score of the detection that the pixel went to; of background, one minus the
        highest score times mask probability of any detection there
    """

    classes: Tensor
    confidence: Tensor


def class_map(classes: Tensor, scores: Tensor, masks: Tensor) -> ClassMap:
    """Return the global map of ClassroomNet (section 3.3): at first everything is background; then, from the least to
    the most confident detection, each overwrites the pixels of its mask with its class.

    classes: int64 [..., N], scores: float32 [..., N], masks: float32 [..., N, H, W], probabilities; above 0.5 is inside
    Of equally confident detections the earlier one, which a detector lists first, is painted last. One whose mask is 0
    everywhere changes nothing.
    """
    detections = scores.shape[-1]
    # The detection painted last has a pixel: the most confident one that covers it. Rank 0 is the background.
    order = detections - 1 - scores.flip(-1).argsort(stable=True)
    ranks = torch.arange(1, detections + 1, device=scores.device).expand_as(order)
    winner = torch.zeros(masks.shape[:-3] + masks.shape[-2:], dtype=torch.int64, device=scores.device)
    doubt = masks.new_zeros(winner.shape)
    if detections:
        rank_of = torch.empty_like(order).scatter_(-1, order, ranks)
        winner = ((masks > _IN_MASK) * rank_of[..., None, None]).amax(-3)
        doubt = (masks * scores[..., None, None]).amax(-3)

    def of_winner(values: Tensor) -> Tensor:
        ranked = torch.cat([values.new_zeros(*values.shape[:-1], 1), values.gather(-1, order)], -1)
        return ranked.gather(-1, winner.flatten(-2)).view(winner.shape)

    return ClassMap(of_winner(classes), torch.where(winner > 0, of_winner(scores), 1 - doubt).float())
