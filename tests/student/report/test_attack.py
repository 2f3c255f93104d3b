"""The pages of attacks and ablations say what was found, run beside run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from student.detections import Detections
from student.evaluation.attack import CLEAN, NOISE, SUM, Attack, AttackResult
from student.evaluation.branches import Ablation, Replacement
from student.evaluation.run import Example
from student.report import attack, branches
from student.report.damage import damage
from student.report.page import Page
from tests.student.students import sample


def example() -> Example:
    one = sample()
    return Example(one, Detections(one.objects.boxes, one.objects.classes, torch.ones(3), one.objects.depth_m), {}, {})


def attacked(goal: str, epsilon: float, ap50: float, **more: float) -> AttackResult:
    shown = example()
    moved = replace(shown, sample=replace(shown.sample, image=shown.sample.image.float() / 255))
    metrics = {"AP50": ap50, "recall@100": 0.5, "loss/sum": 2.0 - ap50, **more}
    return AttackResult(
        attack=Attack(goal=goal, epsilon=epsilon), images=1, objects=3, metrics=metrics, examples=[moved]
    )


FOUND = [
    attacked(CLEAN, 0, 0.8, **{"depth/AbsRel": 0.1}),
    attacked("box", 4, 0.4),
    attacked(SUM, 4, 0.2, **{"depth/AbsRel": 0.2}),
    attacked(NOISE, 4, 0.8, **{"depth/AbsRel": 0.1}),
]


@pytest.mark.parametrize(
    ("clean", "after", "more_is_better", "expected"),
    [
        (0.8, 0.2, True, 0.75),
        (0.8, 0.8, True, 0.0),
        (0.4, 0.5, True, -0.25),
        (0.1, 9.0, True, -1.0),
        (0.1, 0.2, False, 0.5),
        (0.2, 2.0, False, 0.9),
        (0.3, 0.1, False, -1.0),
        (0.0, 0.0, False, 0.0),
        (0.0, 0.3, True, -1.0),
    ],
)
def test_damage_is_the_share_that_is_lost(clean: float, after: float, more_is_better: bool, expected: float) -> None:
    assert damage(clean, after, more_is_better) == pytest.approx(expected)


def test_runs_stand_side_by_side_and_what_one_has_not_is_a_dash() -> None:
    header, rows = attack.table({"one": FOUND, "two": FOUND[:2]})
    assert header[:3] == ["attack", "one: AP50", "one: recall@100"]
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(by_name) == ["clean", "box 4/255", "sum 4/255", "noise 4/255"]
    assert by_name["sum 4/255"]["one: AP50"] == "0.200"
    assert by_name["sum 4/255"]["one: AP50 lost"] == "75%"
    assert by_name["sum 4/255"]["two: AP50"] == "-"
    assert by_name["box 4/255"]["two: AP50 lost"] == "50%"
    assert by_name["box 4/255"]["one: AbsRel, found"] == "-"


def test_the_page_of_attacks_says_that_teachers_see_the_clean_images(tmp_path: Path) -> None:
    page = Page("attacks")
    attack.fill_page(page, {"one": FOUND}, 4)
    page.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "teachers see the clean images" in text
    assert text.count("<img") == 3
    assert "Attacked images: one" in text


CASES: list[tuple[str | None, Replacement | None, float]] = [(None, None, 0.5), ("lidar", "mean", 0.375)]


def test_an_ablation_is_shown_as_a_difference() -> None:
    found = [
        Ablation(branch=None, replacement=None, images=1, objects=3, metrics={"AP50": 0.5}, examples=[example()]),
        Ablation(
            branch="lidar", replacement="mean", images=1, objects=3, metrics={"AP50": 0.375}, examples=[example()]
        ),
    ]
    header, rows = branches.table({"one": found})
    assert header == ["branch", "AP50", "recall@100", "AbsRel"]
    assert rows == [["as it is", "0.500", "-", "-"], ["lidar: mean", "-0.125", "-", "-"]]
    page = Page("branches")
    branches.fill_page(page, {"one": found})


def test_over_seeds_of_an_arm_what_is_lost_has_a_mean_and_a_spread() -> None:
    def run(ap50: float, without: float) -> list[Ablation]:
        return [
            Ablation(branch=None, replacement=None, images=1, objects=3, metrics={"AP50": ap50}, examples=[]),
            Ablation(branch="lidar", replacement="mean", images=1, objects=3, metrics={"AP50": without}, examples=[]),
            Ablation(branch="lidar", replacement="other image", images=1, objects=3, metrics={"AP50": 0}, examples=[]),
        ]

    header, rows = branches.seeds_table(
        {"imitation-0": run(0.5, 0.4), "imitation-1": run(0.6, 0.3), "none-0": run(0.5, 0.5)}
    )
    assert header[:4] == ["arm", "without", "runs", "all"]
    assert rows == [
        ["imitation", "lidar", "2", "+0.200 ± 0.141", "-", "-", "-", "-"],
        ["none", "lidar", "1", "+0.000", "-", "-", "-", "-"],
    ]


def test_runs_whose_clean_metrics_differ_are_not_called_equal() -> None:
    better = [attacked(CLEAN, 0, 0.9), attacked(SUM, 4, 0.3)]
    almost = [attacked(CLEAN, 0, 0.75), attacked(SUM, 4, 0.3)]
    assert "within 10% of one's: almost." in attack.matching({"one": FOUND, "almost": almost, "better": better})
    assert "none; train.py --loop.keep keeps the steps before" in attack.matching({"one": FOUND, "better": better})


def test_steps_and_other_sources_are_no_points_of_the_curves_and_have_rows() -> None:
    def of(plain: AttackResult, **more: Any) -> AttackResult:
        return replace(plain, attack=replace(plain.attack, **more))

    found = [*FOUND, of(attacked(SUM, 4, 0.5), steps=1), of(attacked(SUM, 4, 0.6), source="two")]
    assert attack._curves({"one": found}) == attack._curves({"one": FOUND})
    assert attack._matrix(found, 4) != attack._matrix(FOUND, 4)
    assert [row[0] for row in attack.table({"one": found})[1]][-2:] == ["sum 4/255, 1 step", "sum 4/255 of two"]
