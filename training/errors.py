"""Why a training run cannot go on."""

from __future__ import annotations

from datalake.errors import UserError


class TrainingError(UserError):
    """A run cannot start, resume or go on; the message says at which step or sample, and what helps."""
