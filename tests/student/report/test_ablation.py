"""The tables of a study: what is compared with what, and what is said of what is missing."""

from __future__ import annotations

import pytest

from student.report.ablation import Results, cost_table, first_epoch_table, gains, lines, markdown


def metrics(ap50: float) -> dict[str, float]:
    """Return a student's metrics with this AP50."""
    training = {"steps": 2, "labelled_images": 1234, "learning_rate": 0.5, "labelled_segments": 1, "segments": 8}
    return {"AP50": ap50, **{f"training/{name}": value for name, value in training.items()}}


RESULTS: Results = {
    1.0: {"none": {0: metrics(0.25), 1: metrics(0.5)}, "classroom": {1: metrics(0.75), 0: metrics(0.375)}}
}


def test_a_gain_is_over_the_same_seed_of_none() -> None:
    assert gains(RESULTS, 1.0, "AP50") == {"classroom": {0: 0.125, 1: 0.25}}


def test_a_seed_that_only_one_arm_has_keeps_its_place_among_the_gains() -> None:
    results: Results = {1.0: {"none": {1: metrics(0.25)}, "classroom": {0: metrics(0.5), 1: metrics(0.5)}}}
    assert gains(results, 1.0, "AP50") == {"classroom": {1: 0.25}}
    text = markdown(results)
    assert "| AP50 above none | seeds 0 1 |" in text
    assert text.rstrip().endswith("| +0.250 | - +0.250 |")


def test_the_gain_is_a_mean_of_pairs_with_its_standard_error() -> None:
    # Differences of .125 and .25: mean .1875, deviation .0884, divided by the root of 2.
    assert markdown(RESULTS).rstrip().endswith("| +0.188 ± 0.062 | +0.125 +0.250 |")


def test_a_line_is_mean_and_sample_deviation() -> None:
    none, pool = lines(RESULTS, 1.0, "AP50")
    assert (none.mean, none.spread) == pytest.approx((0.375, 0.25 / 2**0.5))
    assert str(pool) == "0.562 ± 0.265"


def test_the_table_shows_arms_that_lose_and_their_labelled_visits() -> None:
    text = markdown({1.0: {**RESULTS[1.0], "masks": {0: metrics(0.125)}}})
    assert "| masks | 1,234 | 0.5 | 0.125 |" in text
    assert text.rstrip().endswith("| -0.125 | -0.125 - |")


def test_a_mean_over_some_of_the_seeds_says_so() -> None:
    (arm,) = lines({1.0: {"none": {0: {"AP": 0.1}, 1: {"AP": 0.2}, 2: {}}}}, 1.0, "AP")
    assert str(arm) == "0.150 ± 0.071 (2 of 3 seeds)"


def test_how_an_undistilled_teacher_is_imitated_is_no_figure() -> None:
    distilled = {**metrics(0.5), "imitation/masks/mIoU": 0.25, "imitation/points/R2": 0.75}
    arms = ("none", "classroom", "masks", "fgfi", "imitation+fgfi", "imitation-shuffled")
    text = markdown({1.0: {arm: {0: distilled} for arm in arms}})
    none, pool, masks, fgfi, both, shuffled = text.rstrip().splitlines()[-6:]
    assert "| not distilled | not distilled |" in fgfi
    assert all("| 0.250 | 0.750 |" in row for row in (both, shuffled))
    assert "| not distilled | not distilled |" in none
    assert "| 0.250 | 0.750 |" in pool
    assert "| 0.250 | not distilled |" in masks


def test_the_title_says_how_much_was_labelled_not_how_much_was_asked_for() -> None:
    assert "## 1 of 8 segments labelled (12.5%), 2 steps" in markdown({0.025: RESULTS[1.0]})


def test_errors_have_a_table_of_their_own_beside_those_of_none() -> None:
    kinds = {"localization": 0.25, "confusion": 0.125, "background": 0.5, "missed": 0.25}
    none = {**metrics(0.5), **{f"errors/{kind}": value for kind, value in kinds.items()}}
    text = markdown({1.0: {"none": {0: none}, "fgfi": {0: {**none, "errors/missed": 0.125}}, "kd": {0: metrics(0.5)}}})
    header, _, *rows = text.rstrip().splitlines()[-5:]
    assert header.replace(" | above none", "") == "| arm | localization | confusion | background | missed |"
    assert rows == [
        "| none | 0.250 |  | 0.125 |  | 0.500 |  | 0.250 |  |",
        "| fgfi | 0.250 | +0.000 | 0.125 | +0.000 | 0.500 | +0.000 | 0.125 | -0.125 |",
        "| kd | - | - | - | - | - | - | - | - |",
    ]


def test_time_and_memory_are_told_relative_to_none() -> None:
    def cost(seconds: float, gigabytes: float) -> dict[str, float]:
        return {
            **metrics(0.5),
            "training/seconds": seconds,
            "training/peak_memory_bytes": gigabytes * 1e9,
            "training/method_parameters": 1200.0,
        }

    arms = {"none": {0: cost(2.0, 1.0), 1: cost(4.0, 1.0)}, "lgd": {0: cost(6.0, 1.5)}, "kd": {0: metrics(0.5)}}
    assert cost_table({1.0: arms}, 1.0)[1] == [
        ["none", "1.50", "1.00", "1.00", "1.00", "1,200"],
        ["lgd", "3.00", "2.00", "1.50", "1.50", "1,200"],
        ["kd", "-", "-", "-", "-", "-"],
    ]


def test_every_loss_after_one_epoch_has_a_column_which_other_arms_leave_empty() -> None:
    none = {**metrics(0.5), "first_epoch/box": 0.25}
    taught = {**metrics(0.5), "first_epoch/box": 0.5, "first_epoch/imitation/masks": 0.125}
    header, rows = first_epoch_table({1.0: {"none": {0: none}, "imitation": {0: taught}}}, 1.0)
    assert header == ["arm", "box", "imitation/masks"]
    assert rows == [["none", "0.250", ""], ["imitation", "0.500", "0.125"]]


def test_classes_and_sizes_have_paired_differences() -> None:
    arms = {arm: {0: {**metrics(0.5), "AP50/small": ap}} for arm, ap in (("none", 0.25), ("pkd", 0.375))}
    text = markdown({1.0: arms}).partition("AP50 by class and size")[2]
    assert "| small | above none |" in text
    assert "| 0.375 | +0.125 |" in text
