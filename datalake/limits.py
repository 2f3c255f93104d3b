"""The ranges of numeric options, checked before anything starts."""

from __future__ import annotations

import math

from datalake.commit import LakeError


def check_range(option: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise LakeError, naming the option and its range, unless `value` is from `least` to `most`; nan never is."""
    if not least <= value <= most:
        expected = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
        raise LakeError(f"{option} {value:g}: expected {expected}")
