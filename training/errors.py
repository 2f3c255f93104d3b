"""Why a training run cannot go on."""

from __future__ import annotations


class TrainingError(ValueError):
    """A run cannot start, resume or go on; the message says at which step or sample, and what helps."""
