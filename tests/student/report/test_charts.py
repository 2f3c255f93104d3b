"""Charts are images of their data: they change with it and with nothing else."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from student.report.charts import (
    arms,
    depth_errors,
    gain_against_cost,
    heat_map,
    over_strength,
    precision_recall,
    training_curves,
)
from student.report.colors import CLASS_COLORS, SERIES, rgb


@dataclass(frozen=True)
class Curve:
    class_name: str
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]


def pixels(png: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def count(png: bytes, color: str) -> int:
    return int((pixels(png) == rgb(color)).all(-1).sum())


def history(end: float) -> list[dict[str, float]]:
    shares = np.linspace(0, 1, 60)
    return [
        {
            "step": step,
            "learning_rate": 0.02 * (1 - share),
            "gradient_norm": 2 - share,
            "loss/class": 1.0 + (end - 1.0) * share,
            "images_per_second": 12.0,
            "wait/data": 0.1,
            "wait/teachers": 0.3,
        }
        for step, share in enumerate(shares.tolist())
    ]


def curve(best: float, class_name: str = "VEHICLE") -> Curve:
    recall = np.linspace(0, 1, 101)
    return Curve(class_name, recall, np.where(recall < best, 0.9, 0.0))


TRUE_M = np.linspace(3, 80, 200)

CHARTS: list[tuple[Callable[[float], bytes], float, float]] = [
    (lambda end: training_curves(history(end)), 0.2, 0.8),
    (lambda best: precision_recall([curve(best)]), 0.3, 0.7),
    (lambda factor: depth_errors(TRUE_M, TRUE_M * factor), 1.05, 1.3),
    (lambda mean: arms({"none": [30.0, 31.0], "all": [mean, mean + 0.5]}, "none", "Arms", "AP [%]"), 31.0, 34.0),
    (
        lambda lost: heat_map(np.array([[lost, 0.0]] * 4), [["a", "b"]] * 4, list("wxyz"), ["AP", "AR"], "Lost"),
        0.2,
        0.9,
    ),
    (lambda end: over_strength({"AP": {"one": ([0, 1, 2], [1.0, 0.8, end])}}, "size"), 0.2, 0.7),
]


@pytest.mark.parametrize(("draw", "one", "other"), CHARTS)
def test_a_chart_changes_with_its_data_and_only_with_it(
    draw: Callable[[float], bytes], one: float, other: float
) -> None:
    first, again, changed = pixels(draw(one)), pixels(draw(one)), pixels(draw(other))
    assert first.shape[0] > 200
    assert first.shape[1] > 400
    assert (first == again).all()
    assert first.shape != changed.shape or (first != changed).any(-1).sum() > 200


@pytest.mark.integration
def test_charts_leave_no_global_state() -> None:
    code = (
        "import matplotlib as mpl\n"
        "before = dict(mpl.rcParams)\n"
        "from student.report.charts import arms, depth_errors\n"
        "arms({'a': [1.0, 2.0]}, 'a', 't', 'm'); depth_errors([1.0], [2.0])\n"
        "assert dict(mpl.rcParams) == before\n"
        "import matplotlib.pyplot as plt\n"
        "assert plt.get_fignums() == []\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_loss_has_a_panel_of_its_own() -> None:
    def height(losses: int) -> int:
        rows = [{"step": step, **{f"loss/{i}": 1.0 for i in range(losses)}} for step in range(5)]
        return pixels(training_curves(rows)).shape[0]

    assert height(1) == height(3)
    assert height(4) == 2 * height(3)


def test_a_value_that_some_steps_lack_is_drawn_where_it_is() -> None:
    rows: list[dict[str, float]] = [{"step": step, "loss/a": 1.0} for step in range(10)]
    rows[5]["loss/b"] = float("nan")
    rows[7]["loss/b"] = rows[8]["loss/b"] = 2.0
    assert count(training_curves(rows), SERIES[0]) > 50


def test_noise_is_smoothed_away() -> None:
    def height(steps: int) -> int:
        rows = [{"step": step, "loss/a": 1.0 + step % 2} for step in range(steps)]
        line = (pixels(training_curves(rows)) == rgb(SERIES[0])).all(-1)
        return int(np.ptp(np.flatnonzero(line.any(1))))

    # Of few steps each is a mean of its own.
    assert height(1000) < 0.2 * height(20)


def test_a_history_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no loss and nothing else to draw"):
        training_curves([{"step": 1}])


def test_a_curve_has_its_classs_color() -> None:
    png = precision_recall([curve(0.5, "VEHICLE"), curve(0.8, "CYCLIST")])
    assert count(png, CLASS_COLORS["VEHICLE"]) > 50
    assert count(png, CLASS_COLORS["CYCLIST"]) > 50
    assert not count(png, CLASS_COLORS["PEDESTRIAN"])


def test_a_curve_ends_where_the_recall_is_not_reached() -> None:
    def reach(best: float) -> int:
        axes = pixels(precision_recall([curve(best)]))
        lower = axes[len(axes) // 8 :]  # without the legend's line
        return int(np.flatnonzero((lower == rgb(CLASS_COLORS["VEHICLE"])).all(-1).any(0)).max())

    assert reach(0.3) < reach(0.5) < reach(0.8)


def test_a_class_never_found_is_named_and_without_a_line() -> None:
    png = precision_recall([curve(0.0)])
    assert 0 < count(png, CLASS_COLORS["VEHICLE"]) < 300


def test_pairs_without_a_distance_are_left_out() -> None:
    true_m, predicted_m = [10.0, 20.0], [11.0, 19.0]
    png = depth_errors([*true_m, np.nan, 30.0, 0.0], [*predicted_m, 5.0, np.nan, 5.0])
    assert png == depth_errors(true_m, predicted_m)


def test_there_may_be_no_objects_at_all() -> None:
    assert pixels(depth_errors([], [])).shape == pixels(depth_errors(TRUE_M, TRUE_M * 1.1)).shape


def test_distances_must_come_in_pairs() -> None:
    with pytest.raises(ValueError, match=r"got: \[2\] and \[1\]"):
        depth_errors([1.0, 2.0], [1.0])


def test_an_arm_with_a_wider_spread_has_a_wider_bar() -> None:
    def width(spread: float) -> int:
        # The first arm's extent keeps the axis as it is.
        table = {"none": [20.0, 40.0], "all": [30.0 - spread, 30.0 + spread]}
        of_arm = (pixels(arms(table, "none", "Arms", "AP [%]")) == rgb(SERIES[1])).all(-1)
        return int(np.ptp(np.flatnonzero(of_arm.any(0))))

    assert width(0.5) < 0.5 * width(4.0)


def test_one_seed_alone_is_drawn_without_a_spread() -> None:
    png = arms({"none": [20.0, 40.0], "all": [30.0]}, "none", "Arms", "AP [%]")
    of_arm = (pixels(png) == rgb(SERIES[1])).all(-1)
    assert 0 < np.ptp(np.flatnonzero(of_arm.any(0))) < 30


@pytest.mark.parametrize("table", [{}, {"none": []}])
def test_an_arm_without_a_result_is_refused(table: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match=r"one arm or more|has no result"):
        arms(table, "none", "Arms", "AP [%]")


def test_an_arm_that_gains_more_lies_higher_and_one_that_costs_more_further_right() -> None:
    png = gain_against_cost({"kd": (1.2, [0.01, 0.02]), "lgd": (1.9, [0.04])}, "step time", "gain")
    kd, lgd = (np.argwhere((pixels(png) == rgb(color)).all(-1)).mean(0) for color in SERIES[:2])
    assert lgd[0] < kd[0]
    assert lgd[1] > kd[1]


def test_a_cell_is_red_where_there_is_damage_and_blue_where_there_is_the_contrary() -> None:
    def reddest(value: float) -> int:
        cells = pixels(heat_map(np.full((2, 2), value), [[""] * 2] * 2, ["a", "b"], ["c", "d"], "t")).astype(int)
        red_over_blue = cells[..., 0] - cells[..., 2]
        return int(red_over_blue.max() if value > 0 else red_over_blue.min())

    assert reddest(1.0) > reddest(0.3) > 20
    assert reddest(-1.0) < reddest(-0.3) < -20


def test_a_heat_map_of_another_shape_than_its_names_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected damage and texts \[2, 1\], got: \[1, 2\]"):
        heat_map(np.zeros((1, 2)), [["a"], ["b"]], ["a", "b"], ["c"], "t")


def test_lines_of_one_name_have_one_color_and_others_another() -> None:
    line = ([0, 4, 8], [0.9, 0.5, 0.1])
    noise = ([0, 4, 8], [0.9, 0.9, 0.9])
    png = over_strength({"AP50": {"one": line, "one, noise": noise, "two": noise}}, "size")
    assert count(png, SERIES[0]) > 100
    assert count(png, SERIES[1]) > 100
    assert not count(png, SERIES[2])
