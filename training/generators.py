"""Random numbers that are a function of the seed, the step, the sample's place in the batch, and what they are for.

Nothing of them has to be stored; how a batch is cut among workers, and how many numbers are drawn elsewhere, changes
nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Samples per step that have a number of their own; far more than any step has.
_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class Chance:
    """The random numbers of one worker's samples in one step.

    places: where in the global batch of `step` each of the samples stands
    """

    seed: int
    step: int
    places: tuple[int, ...]

    def generators(self, purpose: str = "") -> list[torch.Generator]:
        """Return a generator on the CPU for each sample, always the same for a purpose; other purposes, others."""
        return [sample_generator(self.seed, self.step, place, purpose) for place in self.places]

    def subset(self, chosen: Sequence[int]) -> Chance:
        """Return those of the chosen samples, numbered as the worker has them."""
        return Chance(self.seed, self.step, tuple(self.places[i] for i in chosen))


def sample_generator(seed: int, step: int, place: int, purpose: str = "") -> torch.Generator:
    """Return the generator of the sample at `place` of the global batch of `step`."""
    number = step * _STEP + place
    # One number after the other would give generators that start alike.
    mixed = seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + zlib.crc32(purpose.encode()) * 0xD6E8FEB86659FD93
    # torch looks at the lowest 32 bits of a seed alone, and these know nothing of what is above them.
    mixed += (number >> 32) * 0x94D049BB133111EB
    return torch.Generator().manual_seed(mixed & (2**63 - 1))
