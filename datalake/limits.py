"""The ranges of numeric options, checked before anything starts."""

from __future__ import annotations

import math

from datalake.commit import LakeError


def check_range(option: str, value: float, least: float, most: float = math.inf, *, exclusive: bool = False) -> None:
    """Raise LakeError, naming the option and its range, unless `value` is from `least` to `most`.

    exclusive: `least` itself is not in the range

    What is not finite never is.
    """
    if not (least <= value <= most and math.isfinite(value)) or (exclusive and value == least):
        lower = f"more than {least:g}" if exclusive else f"at least {least:g}"
        expected = lower if most == math.inf else f"{lower} and at most {most:g}"
        if not exclusive and most < math.inf:
            expected = f"{least:g} to {most:g}"
        raise LakeError(f"{option} {value:g}: expected {expected}")
