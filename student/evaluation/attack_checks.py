"""What must hold of an attack that finds what there is to find (after Carlini et al. 2019, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from student.evaluation.attack import CLEAN, NOISE, SUM, AttackResult

# AP50 of a few images moves by so much without a reason.
_TOLERANCE = 0.01
# Of the clean AP50: at most so much is left by the largest attack, at least so much by noise.
_BROKEN, _UNHARMED = 0.1, 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackCheck:
    """A claim, whether it holds, and the AP50 by which that was decided."""

    claim: str
    holds: bool
    seen: str

    def __str__(self) -> str:
        return f"{self.claim}: {self.seen}"


def check_attacks(found: Sequence[AttackResult]) -> list[AttackCheck]:
    """Return which claims hold of one run's attacks, the clean images first; those that can be decided.

    Damage rises with epsilon and with steps, the largest epsilon breaks nearly all, noise of a size does little, and
    an attack made for another run does less than one made for this.
    """
    clean = next((one.metrics.get("AP50") for one in found if one.attack.goal == CLEAN), None)
    if not clean:
        return []
    scored = [(one.attack, one.metrics["AP50"]) for one in found if "AP50" in one.metrics]
    own = [(attack, value) for attack, value in scored if attack.goal == SUM and attack.source is None]
    by_size = sorted((attack.epsilon, value) for attack, value in own if attack.steps is None)
    checks = []
    if by_size:
        line = [(0.0, clean), *by_size]
        checks.append(_falling("damage rises with epsilon", line, "/255"))
        largest, left = by_size[-1]
        checks.append(
            AttackCheck(
                claim=f"{largest:g}/255 breaks nearly all", holds=left <= _BROKEN * clean, seen=_pair(clean, left)
            )
        )
    fewer = sorted((float(attack.steps), value) for attack, value in own if attack.steps is not None)
    size = next((attack.epsilon for attack, _ in own if attack.steps is not None), None)
    if fewer and size in dict(by_size):
        line = [(0.0, clean), *fewer, (float("inf"), dict(by_size)[size])]
        checks.append(_falling(f"damage of {size:g}/255 rises with the steps", line, " steps"))
    for attack, value in scored:
        if attack.goal == NOISE and attack.epsilon == (by_size[-1][0] if by_size else None):
            claim = f"noise of {attack.epsilon:g}/255 does little"
            checks.append(AttackCheck(claim=claim, holds=value >= _UNHARMED * clean, seen=_pair(clean, value)))
        if attack.source is not None and attack.epsilon in dict(by_size):
            white_box = dict(by_size)[attack.epsilon]
            claim = f"{attack.epsilon:g}/255 made for {attack.source} does less than made for this run"
            seen = f"{value:.3f} is left, {white_box:.3f} of its own"
            checks.append(AttackCheck(claim=claim, holds=value >= white_box - _TOLERANCE, seen=seen))
    return checks


def _falling(claim: str, line: Sequence[tuple[float, float]], unit: str) -> AttackCheck:
    values = [value for _, value in line]
    holds = all(later <= value + _TOLERANCE for value, later in pairwise(values))
    seen = ", ".join(f"{value:.3f} at {'all' if at == float('inf') else f'{at:g}'}{unit}" for at, value in line)
    return AttackCheck(claim=claim, holds=holds, seen=seen)


def _pair(clean: float, left: float) -> str:
    return f"{left:.3f} of {clean:.3f} is left"
