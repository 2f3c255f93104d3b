"""Samples compared to the last bit."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch


def equal(left: Any, right: Any) -> bool:
    """Return whether two samples, or parts of samples, hold the same values, of the same types."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left.nan_to_num(-1), right.nan_to_num(-1))
    if is_dataclass(left):
        return all(equal(getattr(left, field.name), getattr(right, field.name)) for field in fields(left))
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def tensors(value: Any) -> list[torch.Tensor]:
    """Return every tensor of a sample."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = [getattr(value, field.name) for field in fields(value)] if is_dataclass(value) else value
    return [each for part in parts for each in tensors(part)] if isinstance(parts, (list, tuple)) else []
