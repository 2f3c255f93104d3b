"""Which anchors and proposals the losses look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RepeatableSampler:
    """Draws anchors or proposals of each picture with that picture's own generator.

    torchvision's sampler draws from the process' generator: what is drawn for a picture then depends on all pictures
    before it, and two workers would not draw what one worker draws. Counts are torchvision's: at most
    `size * positive_share` positives, filled up with negatives.
    """

    def __init__(self, size: int, positive_share: float) -> None:
        self.size, self._positives = size, int(size * positive_share)
        self.generators: Sequence[torch.Generator] = ()

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return masks uint8 of the chosen positives (label ≥ 1) and negatives (0) of each picture; -1 is ignored."""
        chosen = [self._draw(one, generator) for one, generator in zip(labels, self.generators, strict=True)]
        return [positive for positive, _ in chosen], [negative for _, negative in chosen]

    def _draw(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        positive = _some(torch.where(labels >= 1)[0], self._positives, generator)
        negative = _some(torch.where(labels == 0)[0], self.size - len(positive), generator)
        return _mask(labels, positive), _mask(labels, negative)


def _some(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    # The generator lives on the CPU, so that a GPU draws what a CPU draws.
    order = torch.randperm(len(candidates), generator=generator)[:count]
    return candidates[order.to(candidates.device)]


def _mask(labels: Tensor, chosen: Tensor) -> Tensor:
    mask = torch.zeros_like(labels, dtype=torch.uint8)
    mask[chosen] = 1
    return mask
