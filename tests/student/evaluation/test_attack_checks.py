"""An attack is believed where it does what a strong one must, and a weak one is called by its name."""

from __future__ import annotations

import pytest

from student.evaluation.attack import CLEAN, NOISE, SUM, Attack, AttackResult
from student.evaluation.attack_checks import check_attacks


def left(attack: Attack, ap50: float) -> AttackResult:
    return AttackResult(attack=attack, images=4, objects=9, metrics={"AP50": ap50}, examples=[])


def results(by_size: tuple[float, ...], noise: float, one_step: float, other: float) -> list[AttackResult]:
    return [
        left(Attack(goal=CLEAN, epsilon=0), 0.5),
        left(Attack(goal="box", epsilon=4), 0.4),
        *(left(Attack(goal=SUM, epsilon=size), ap50) for size, ap50 in zip((1.0, 4.0, 8.0), by_size, strict=True)),
        left(Attack(goal=NOISE, epsilon=8), noise),
        left(Attack(goal=SUM, epsilon=4, steps=1), one_step),
        left(Attack(goal=SUM, epsilon=4, source="none"), other),
    ]


def test_a_strong_attack_is_believed() -> None:
    found = check_attacks(results((0.3, 0.1, 0.02), noise=0.45, one_step=0.2, other=0.4))
    assert [one.claim for one in found] == [
        "damage rises with epsilon",
        "8/255 breaks nearly all",
        "damage of 4/255 rises with the steps",
        "noise of 8/255 does little",
        "4/255 made for none does less than made for this run",
    ]
    assert all(one.holds for one in found)


@pytest.mark.parametrize(
    ("found", "doubted"),
    [
        (results((0.3, 0.01, 0.04), 0.45, 0.2, 0.4), "damage rises with epsilon"),
        (results((0.3, 0.1, 0.06), 0.45, 0.2, 0.4), "8/255 breaks nearly all"),
        (results((0.3, 0.1, 0.02), 0.45, 0.05, 0.4), "damage of 4/255 rises with the steps"),
        (results((0.3, 0.1, 0.02), 0.3, 0.2, 0.4), "noise of 8/255 does little"),
        (results((0.3, 0.1, 0.02), 0.45, 0.2, 0.05), "4/255 made for none does less than made for this run"),
    ],
)
def test_each_sign_of_a_weak_attack_is_told(found: list[AttackResult], doubted: str) -> None:
    assert [one.claim for one in check_attacks(found) if not one.holds] == [doubted]


def test_where_nothing_was_found_nothing_can_be_decided() -> None:
    assert check_attacks([left(Attack(goal=CLEAN, epsilon=0), 0.0), left(Attack(goal=SUM, epsilon=4), 0.0)]) == []
