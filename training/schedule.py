"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.errors import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up to `peak`, then half a cosine down to `final_share` of it.

    It is evaluated per step; schedules that wait for a plateau of noisy per-step losses collapse within an epoch.
    """

    peak: float
    steps: int
    warmup_steps: int
    final_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.steps:
            raise TrainingError(f"expected fewer warm-up steps than steps, got: {self.warmup_steps} of {self.steps}")
        if not 0 < self.peak < math.inf:
            raise TrainingError(f"expected a positive learning rate, got: {self.peak}")

    def rate(self, step: int) -> float:
        """Return the learning rate of step 0 … steps - 1: `peak` first at step `warmup_steps`."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(self.steps - 1 - self.warmup_steps, 1)
        return self.peak * (self.final_share + (1 - self.final_share) * (1 + math.cos(math.pi * done)) / 2)
