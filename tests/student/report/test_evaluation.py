"""The page of an examined student says what was found, shows it, and does not flatter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import fsspec
import numpy as np
import pytest

from datalake.sample import Objects
from student.evaluation.detection import PrecisionRecall
from student.evaluation.imitation import CellMean
from student.evaluation.run import EvaluationResult, evaluate_student
from student.report.comparisons import comparisons, teachers_in
from student.report.evaluation import FRAMES, TEACHER_FRAMES, Evaluation, best_scores, verdict, write_report
from teachers.pool import LocalPool
from tests.student.students import COLORS, HEIGHT, SHADES, TAUGHT, WIDTH, ColorTeacher, build, samples, targets_of

HISTORY = [{"step": step, "loss/box": 1 / (step + 1), "learning_rate": 0.1, "wait/data": 0.0} for step in range(7)]
FIGURES = {
    "AP50": 0.5612,
    "recall@100": 0.8,
    "recall@100/>16px": 0.93,
    "depth/AbsRel": 0.11,
    "depth/AbsRel/constant": 0.38,
    "imitation/lidar/R2": 0.61,
    "imitation/lidar/R2/position": 0.28,
    "imitation/lidar/cosine": 0.7,
    "imitation/lidar/cosine/mean": 0.4,
    "imitation/mask/mIoU": 0.53,
    "imitation/mask/trivial/mIoU": 0.23,
    "images_per_second": 12.0,
}


@pytest.fixture(scope="module")
def result() -> EvaluationResult:
    """An untrained student on ten images, beside two teachers that are blind above."""
    grid = TAUGHT.grid(HEIGHT, WIDTH)
    room = LocalPool({"colors": ColorTeacher(COLORS, 3), "shades": ColorTeacher(SHADES, 3)}, grid)
    mean = CellMean(COLORS.channels, *grid)
    mean.add(targets_of(samples(4))["colors"])
    images = samples(10)
    batches = [images[:4], images[4:8], images[8:]]
    student = build(TAUGHT).eval()
    return evaluate_student(student, batches, room, cell_means={"colors": mean.values()}, example_every=1)


def evaluation_of(result: EvaluationResult, **more: object) -> Evaluation:
    settings = {"steps trained": "7", "trained with <b>": "lake & split"}
    known = {"metrics": result.metrics, "settings": settings, "history": HISTORY}
    return Evaluation(result=result, **{**known, **more})  # type: ignore[arg-type]


def written(evaluation: Evaluation, name: str) -> str:
    url = f"memory://evaluation/{name}.html"
    write_report(url, "A student", evaluation)
    page: str = fsspec.filesystem("memory").cat_file(url).decode()
    return page


def headings(page: str) -> list[str]:
    return re.findall("<h2>([^<]*)</h2>", page)


def test_the_page_goes_from_images_to_metrics_to_settings(result: EvaluationResult) -> None:
    distances = (np.array([10.0, 20.0], np.float32), np.array([11.0, 19.0], np.float32))
    page = written(evaluation_of(replace(result, depths_m=distances)), "whole")
    assert headings(page) == [
        "Detections",
        "Targets of the teachers and predictions of the student",
        "Training",
        "Precision and recall",
        "Errors by kind",
        "Depth errors",
        "Compared with trivial predictors",
        "All metrics",
        "Settings",
    ]
    first = page.index(verdict(result.metrics, 10))
    assert page.index("<h1>") < first < page.index("<h2>")
    assert "Each of 7 steps" in page
    assert page.count("data:image/jpeg") == FRAMES + TEACHER_FRAMES
    assert page.count("data:image/png") == 3
    assert "trained with &lt;b&gt;  lake &amp; split" in page


def test_the_page_needs_no_other_file(result: EvaluationResult) -> None:
    page = written(evaluation_of(result), "alone")
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_without_teachers_and_log_their_sections_are_left_out() -> None:
    alone = evaluate_student(build(TAUGHT).eval(), [samples(2)], None, example_every=1)
    page = written(evaluation_of(alone, history=()), "poor")
    assert "Detections" in headings(page)
    assert "Training" not in headings(page)
    assert "Targets of the teachers and predictions of the student" not in headings(page)
    assert page.count("data:image/jpeg") == 2


def test_teachers_of_any_classes_can_be_shown(result: EvaluationResult) -> None:
    own = evaluation_of(result, class_names={"shades": ("dark", "gray", "bright")})
    known = evaluation_of(result, class_names={"shades": ("BACKGROUND", "VEHICLE", "CYCLIST")})
    images = [re.findall('data:image/jpeg;base64,([^"]*)', written(one, "shades")) for one in (own, known)]
    # The same detections; the classes in two ways.
    same = [one == other for one, other in zip(*images, strict=True)]
    assert same == [True] * FRAMES + [False] * TEACHER_FRAMES


def test_more_can_be_added_at_the_end(result: EvaluationResult) -> None:
    url = "memory://evaluation/more.html"
    write_report(url, "A student", evaluation_of(result), lambda page: page.heading("The lake"))
    assert headings(fsspec.filesystem("memory").cat_file(url).decode())[-2:] == ["Settings", "The lake"]


def test_frames_are_those_with_most_labels_of_even_stretches(result: EvaluationResult) -> None:
    examples = [
        replace(one, sample=replace(one.sample, objects=first_of(one.sample.objects, place % 4)))
        for place, one in enumerate(result.examples)
    ]
    page = written(evaluation_of(replace(result, examples=examples)), "few")
    shown = re.findall(r"<figcaption>(segment_\d+)[^<]*, (\d+) labelled", page)
    assert len(shown) == FRAMES
    numbers = [int(name.removeprefix("segment_")) for name, _ in shown]
    assert all(one < other for one, other in pairwise(numbers))
    assert [int(labelled) for _, labelled in shown] == [number % 4 for number in numbers]
    # Stretches of one or two frames: 0, 1-2, 3-4, 5, 6-7, 8-9. There are at most three labels.
    assert numbers == [0, 2, 3, 5, 7, 9]


def first_of(objects: Objects, count: int) -> Objects:
    return Objects(objects.boxes[:count], objects.classes[:count], objects.depth_m[:count])


def test_the_verdict_names_the_chief_metrics_beside_the_trivial_ones() -> None:
    assert verdict(FIGURES, 1300) == (
        "AP50 0.56 and distances off by 11% (the best single distance: 38%) on 1,300 images it was not trained on;"
        " 93% of the objects above 16 pixels are proposed."
        " It imitates lidar with R² 0.61 (the training mean of each cell: 0.28)"
        " and mask with mIoU 0.53 (background everywhere: 0.23)."
        " Better than a trivial predictor in 4 of 4 metrics."
    )


@pytest.mark.parametrize(
    ("figure", "value"), [("depth/AbsRel", 0.38), ("imitation/lidar/R2", 0.2), ("imitation/mask/mIoU", 0.23)]
)
def test_the_verdict_says_where_a_trivial_answer_is_as_good(figure: str, value: float) -> None:
    predicted = verdict({**FIGURES, figure: value}, 10)
    assert predicted.endswith(f" Better than a trivial predictor in 3 of 4 metrics, not in {figure}.")


def test_a_student_is_not_blamed_for_a_teacher_that_it_never_heard() -> None:
    predicted = verdict({**FIGURES, "imitation/lidar/R2": -0.3}, 10, {"lidar"})
    assert "It was trained without lidar." in predicted
    assert "R²" not in predicted
    assert predicted.endswith("Better than a trivial predictor in 2 of 2 metrics.")


def test_without_labels_the_verdict_speaks_of_imitation() -> None:
    predicted = verdict({name: value for name, value in FIGURES.items() if name.startswith("im")}, 10)
    assert predicted.startswith(
        "Nothing was labelled on 10 images it was not trained on. It imitates lidar with R² 0.61"
    )


def test_the_table_tells_worse_from_never_heard(result: EvaluationResult) -> None:
    for undistilled, worse, never in (
        (frozenset[str](), 3, 0),
        (frozenset({"lidar"}), 1, 2),
        (frozenset({"mask"}), 2, 1),
    ):
        bad = {**FIGURES, "imitation/lidar/R2": 0.1, "imitation/lidar/cosine": 0.1, "imitation/mask/mIoU": 0.1}
        page = written(evaluation_of(result, metrics=bad, undistilled=undistilled), "judged")
        cells = re.findall("<td>(better|NOT BETTER|not distilled)</td>", page)
        assert (cells.count("better"), cells.count("NOT BETTER"), cells.count("not distilled")) == (1, worse, never)


def test_comparisons_know_which_direction_is_better() -> None:
    by_name = {one.name: one for one in comparisons(FIGURES)}
    assert by_name["depth/AbsRel"].better
    assert by_name["AP50"].trivial is None
    worse = {one.name: one for one in comparisons({**FIGURES, "depth/AbsRel": 0.5, "imitation/lidar/cosine": 0.1})}
    assert not worse["depth/AbsRel"].better
    assert not worse["imitation/lidar/cosine"].better
    assert teachers_in(FIGURES) == ["lidar", "mask"]


def test_without_a_training_mean_the_trivial_r2_is_that_of_the_mean_of_each_channel() -> None:
    known = {name: value for name, value in FIGURES.items() if name != "imitation/lidar/R2/position"}
    (r2,) = (one for one in comparisons(known) if one.name == "imitation/lidar/R2")
    assert (r2.trivial, r2.answer) == (0.0, "the mean of each channel")


def test_a_training_mean_that_does_worse_than_the_mean_of_each_channel_is_no_help() -> None:
    known = {**FIGURES, "imitation/lidar/R2": -0.05, "imitation/lidar/R2/position": -0.1}
    (r2,) = (one for one in comparisons(known) if one.name == "imitation/lidar/R2")
    assert (r2.trivial, r2.better) == (0.0, False)


def curve(name: str, precision: Sequence[float], scores: Sequence[float]) -> PrecisionRecall:
    recall = np.linspace(0, 1, len(precision))
    return PrecisionRecall(name, recall, np.array(precision), np.array(scores))


def test_the_best_score_is_that_of_the_best_f1_measure() -> None:
    # At recalls 0, 0.25, 0.5, 0.75 and 1 the measures are 0, 0.4, 0.64, 0.62 and 0.
    steady = curve("VEHICLE", [1.0, 1.0, 0.9, 0.53, 0.0], [0.99, 0.9, 0.7, 0.3, 0.0])
    nothing = curve("SIGN", [0.0] * 5, [0.0] * 5)
    assert best_scores([steady, nothing]) == {"VEHICLE": 0.7}
