"""Sampling of anchors and proposals for the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from student.transfer import host_buffer

# Bits of a key's lower half, the candidate's number.
_NUMBER_BITS = 31
# Above all keys.
_FIRST = 1 << (2 * _NUMBER_BITS)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """S of the candidates of each of B images: positives first, then negatives.

    index: int64 [B, S]
    valid: bool [B, S]; False where an image has fewer candidates than are sampled
    """

    index: Tensor
    valid: Tensor


def draw_keys(counts: Sequence[int], generators: Sequence[torch.Generator], device: torch.device) -> Tensor:
    """Return keys int64 [B, max(counts)] on the device: one for each candidate of an image, from its own generator.

    The generators are on the CPU. What is drawn for an image does not depend on the others, on the device, or on what
    is a candidate in the end: the largest key is taken first. No two keys of an image are the same, which
    devices would settle differently.
    """
    drawn = host_buffer((len(counts), max(counts)), torch.int32, device)
    for row, count, generator in zip(drawn, counts, generators, strict=True):
        row[:count].random_(generator=generator)
        row[count:] = 0
    keys = drawn.to(device, non_blocking=True).long() << _NUMBER_BITS
    return keys | torch.arange(keys.shape[1], device=device)


def sample(label: Tensor, keys: Tensor, size: int, positive_share: float) -> Drawn:
    """Return a sample of candidates: at most `size * positive_share` positives, filled up with negatives to `size`.

    label: int64 [B, N], positive (1 or more), negative (0), or not a candidate (-1)
    keys: int64 [B, N], see `draw_keys`

    Counts are those of torchvision's BalancedPositiveNegativeSampler.
    """
    positives = torch.where(label >= 1, keys, -1).topk(min(int(size * positive_share), label.shape[1]), 1)
    rank = torch.where(label == 0, keys, -1)
    # Positives come before all negatives; where there are too few of them, the places are left as they are.
    first = torch.where(positives.values >= 0, positives.values + _FIRST, rank.gather(1, positives.indices))
    chosen = rank.scatter(1, positives.indices, first).topk(min(size, label.shape[1]), 1)
    return Drawn(chosen.indices, chosen.values >= 0)


def rows_of(table: Tensor, index: Tensor) -> Tensor:
    """Return [B, S, 4], rows int64 [B, S] of tables [B, N, 4]."""
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[2]))
