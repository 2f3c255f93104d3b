"""From many detections to one class per pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_IN_MASK = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class ClassMap:
    """What each pixel of one picture shows.

    classes: int64 [H, W], 0 for background
    confidence: float32 [H, W], the score of the detection that the pixel went to; of background, one minus the
        highest score times mask probability of any detection there
    """

    classes: Tensor
    confidence: Tensor


def class_map(classes: Tensor, scores: Tensor, masks: Tensor) -> ClassMap:
    """Return the global map of ClassroomNet (section 3.3): at first everything is background; then, from the least to
    the most confident detection, each overwrites the pixels of its mask with its class.

    classes: int64 [N], scores: float32 [N], masks: float32 [N, H, W], probabilities; above 0.5 is inside
    Of equally confident detections the earlier one, which a detector lists first, is painted last.
    """
    # Whoever is painted last has a pixel: the most confident one that covers it. Rank 0 is the background.
    order = scores.flip(0).argsort(stable=True)
    order = len(scores) - 1 - order
    ranks = torch.arange(1, len(scores) + 1, device=scores.device)
    zero = scores.new_zeros(1)
    winner = torch.zeros(masks.shape[1:], dtype=torch.int64, device=scores.device)
    doubt = masks.new_zeros(masks.shape[1:])
    if len(scores):
        winner = ((masks[order] > _IN_MASK) * ranks[:, None, None]).amax(0)
        doubt = (masks * scores[:, None, None]).amax(0)
    won = torch.cat([zero, scores[order]])[winner]
    return ClassMap(
        torch.cat([classes.new_zeros(1), classes[order]])[winner], torch.where(winner > 0, won, 1 - doubt).float()
    )
