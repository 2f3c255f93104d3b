"""What the heads of a transformer look at, against labelled objects (Caron et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from student.evaluation.object_masks import Floats, ObjectTruth, enlarged, overlaps
from student.pretraining.vit import largest_cells, masses


@dataclass(frozen=True, slots=True, eq=False)
class HeadScores:
    """What the heads' masks, the cells that hold 60 % of the attention, are of an image's objects.

    jaccard: float64 [objects, heads]
    tilings: float64 [objects], the best of as many random masks with the same areas: the best of many is never bad
    inside: float64 [heads], share of the attention on objects over their share of the image
    """

    jaccard: Floats
    tilings: Floats
    inside: Floats


def head_scores(maps: Tensor, truth: ObjectTruth, generator: torch.Generator, mass: float = 0.6) -> HeadScores:
    """Return the scores of an image's attention float32 [heads, h, w]."""
    kept = largest_cells(maps, mass)
    random = torch.rand(maps.shape, generator=generator).flatten(1).argsort(1)
    # As many cells as the head's mask has, anywhere.
    chance = (random < kept.flatten(1).sum(1, keepdim=True)).unflatten(1, maps.shape[1:])
    jaccard, tilings = (
        np.stack([_jaccard(mask, truth) for mask in masks], 1) if truth.count else np.zeros((0, len(maps)))
        for masks in (kept, chance)
    )
    shape = truth.ids.shape
    share = torch.from_numpy((truth.ids > 0).astype(np.float32))[None, None]
    cells = torch.nn.functional.interpolate(share, maps.shape[1:], mode="area")[0, 0]
    area = float((truth.ids > 0).sum()) / (shape[0] * shape[1])
    inside = (masses(maps) * cells).sum((1, 2)).double().numpy()
    return HeadScores(jaccard, tilings.max(1, initial=0), inside / area if area else np.full(len(maps), np.nan))


def best_head(scores: Sequence[HeadScores]) -> int:
    """Return the head whose masks are most like the objects of images that nothing is measured on."""
    return int(np.concatenate([each.jaccard for each in scores]).mean(0).argmax())


def _jaccard(mask: Tensor, truth: ObjectTruth) -> Floats:
    pieces = enlarged(mask.numpy().astype(np.int64), truth.ids.shape) - 1
    return overlaps(truth.ids, truth.count + 1, pieces)[1:].max(1, initial=0)
