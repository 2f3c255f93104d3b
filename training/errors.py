"""The error of a training that cannot start or continue."""

from __future__ import annotations

from datalake.errors import UserError


class TrainingError(UserError):
    """A run cannot start, resume or continue; the message says at which step or sample, and what helps."""
