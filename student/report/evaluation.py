"""The evaluation of a student on one page: detections, depths, imitation, and all metrics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from datalake.sample import Sample
from student.detections import CLASS_NAMES, Detections
from student.evaluation.detection import PrecisionRecall
from student.evaluation.errors import ERROR_KINDS
from student.evaluation.ranges import ABOVE_16_PIXELS, DISTANCES, SIZES
from student.evaluation.run import EvaluationResult, Example
from student.report.charts import depth_errors, precision_recall, training_curves
from student.report.colors import CLASS_COLORS, COLOR_WORDS
from student.report.comparisons import ERRORS_EXPLAINED, Comparison, comparisons, teacher_of, teachers_in
from student.report.images import (
    ImageArray,
    beside,
    colors_of_classes,
    colors_of_features,
    draw_detections,
    draw_points,
)
from student.report.page import Page
from teachers.target import Target

# Images with detections, and images with targets and predictions of them.
FRAMES, TEACHER_FRAMES = 6, 3
# The score from which on a class is drawn of which none was found rightly.
_ANY_SCORE = 0.5
_PANEL_PX = 256
_CLASS_ROWS = [("all", ""), *((name, f"/{name}") for name in CLASS_NAMES[1:])]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """The evaluation of a student, and what a reader has to know of it.

    metrics: the evaluation's, and whatever else was measured
    history: rows of the training's log; none where there is no log
    class_names: of each teacher of classes
    undistilled: teachers that the branches are compared with but were not trained with
    settings: of the run and its evaluation, by name
    """

    result: EvaluationResult
    metrics: Mapping[str, float]
    settings: Mapping[str, str]
    history: Sequence[Mapping[str, float]] = ()
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    undistilled: frozenset[str] = frozenset()


def write_report(
    url: str, title: str, evaluation: Evaluation, more: Callable[[Page], None] = lambda _page: None
) -> None:
    """Write a page of its own to a path or an fsspec URL.

    more: called with the page when the evaluation is on it, to add what else there is to show
    """
    page = Page(title)
    show_evaluation(page, evaluation)
    more(page)
    page.write(url)


def show_evaluation(page: Page, evaluation: Evaluation) -> None:
    """Add the evaluation to a page: a verdict, images, charts, and the metrics beside those of trivial predictors."""
    result, metrics = evaluation.result, evaluation.metrics
    page.text(verdict(metrics, result.samples, evaluation.undistilled))
    _show_frames(page, result)
    if shown := [example for example in chosen_examples(result.examples, TEACHER_FRAMES) if example.targets]:
        page.heading("Targets of the teachers and predictions of the student")
        page.text(
            "Cells of equal color mean the same to the teacher and to the student. Numbers are shown by their three"
            " principal components, classes in the colors of the objects above. Dark gray: the target is not"
            " valid there, and the prediction is dimmed. The student gets the image alone, never the lidar points."
        )
        for example in shown:
            page.image(_teacher_panels(example, evaluation.class_names), where(example))
    if evaluation.history:
        page.heading("Training")
        page.image(
            training_curves(evaluation.history),
            f"Each of {len(evaluation.history):,} steps is thin, their running mean thick.",
        )
    page.heading("Precision and recall")
    page.image(
        precision_recall(result.curves),
        "At IoU 0.5. A curve ends where more objects are not found at any score.",
    )
    _show_ranges(page, metrics)
    _show_errors(page, metrics)
    if len(result.depths_m[0]):
        page.heading("Depth errors")
        page.image(
            depth_errors(*result.depths_m),
            "Detections that overlap an object of their class by IoU 0.5 or more, each against the mean distance of the"
            " object's lidar points.",
        )
    page.heading("Compared with trivial predictors")
    page.table(
        [
            [
                one.name,
                f"{one.value:.3f}",
                "-" if one.trivial is None else f"{one.trivial:.3f}",
                one.answer or "-",
                _judged(one, evaluation.undistilled),
            ]
            for one in comparisons(metrics)
        ],
        ["metric", "student", "trivial", "the trivial prediction", ""],
    )
    page.heading("All metrics")
    page.metrics(metrics)
    page.heading("Settings")
    widest = max(map(len, evaluation.settings), default=0)
    page.preformatted("\n".join(f"{name:<{widest}}  {value}" for name, value in evaluation.settings.items()))


def verdict(metrics: Mapping[str, float], samples: int, undistilled: Collection[str] = ()) -> str:
    """Return the chief metrics in a line, and where the student does not beat trivial predictors.

    undistilled: teachers that the student was not trained with: it need not imitate them
    """
    by_name = {one.name: one for one in comparisons(metrics)}
    heard = [teacher for teacher in teachers_in(metrics) if teacher not in undistilled]
    judged = [one for one in by_name.values() if one.trivial is not None and teacher_of(one.name) in (None, *heard)]

    found = f"AP50 {metrics['AP50']:.2f}" if "AP50" in metrics else "Nothing was labelled"
    if (depth := by_name.get("depth/AbsRel")) is not None:
        found += f" and distances off by {depth.value:.0%}{_beside(depth, '.0%')}"
    found += f" on {samples:,} images it was not trained on"
    if (recall := metrics.get(f"recall@100/{ABOVE_16_PIXELS.name}")) is not None:
        found += f"; {recall:.0%} of the objects above 16 pixels are proposed"
    learned = [
        f"{teacher} with {written} {one.value:.2f}{_beside(one, '.2f')}"
        for teacher in heard
        for figure, written in (("R2", "R²"), ("mIoU", "mIoU"))
        if (one := by_name.get(f"imitation/{teacher}/{figure}")) is not None
    ]
    sentences = [found]
    if learned:
        sentences.append(f"It imitates {' and '.join(learned)}")
    if silent := [teacher for teacher in teachers_in(metrics) if teacher in undistilled]:
        sentences.append(f"It was trained without {' and '.join(silent)}")
    if judged:
        worse = [one.name for one in judged if not one.better]
        share = f"{len(judged) - len(worse)} of {len(judged)} metrics"
        sentences.append(f"Better than a trivial predictor in {share}{', not in ' if worse else ''}{', '.join(worse)}")
    return ". ".join(sentences) + "."


def best_scores(curves: Sequence[PrecisionRecall]) -> dict[str, float]:
    """Return the score from which on a class's detections have the best F1 measure; none of a class never found."""
    thresholds = {}
    for curve in curves:
        both = curve.precision + curve.recall
        measure = 2 * curve.precision * curve.recall / both.clip(min=1e-9)
        if measure.max() > 0:
            thresholds[curve.class_name] = float(curve.scores[measure.argmax()])
    return thresholds


def _judged(one: Comparison, undistilled: Collection[str]) -> str:
    if one.trivial is None:
        return ""
    if teacher_of(one.name) in undistilled:
        return "not distilled"
    return "better" if one.better else "NOT BETTER"


def _beside(one: Comparison, form: str) -> str:
    return "" if one.trivial is None else f" ({one.answer}: {one.trivial:{form}})"


def _show_frames(page: Page, result: EvaluationResult) -> None:
    thresholds = best_scores(result.curves)
    if not (frames := chosen_examples(result.examples, FRAMES)):
        return
    page.heading("Detections")
    least = {name: thresholds.get(name, _ANY_SCORE) for name in CLASS_NAMES[1:]}
    page.text(
        "Colored boxes: found, with score and predicted distance. Dashed white boxes: labelled, with the distance that"
        " the lidar measured. The frames are spread evenly over the split; of every stretch the one with the most"
        " labels is shown. A class is drawn from the score on at which its F1 measure is best: "
        + ", ".join(f"{name} ({COLOR_WORDS[name]}) {score:.2f}" for name, score in least.items())
        + "."
    )
    for example in frames:
        objects = example.sample.objects
        image = draw_detections(example.sample.image, _confident(example.found, least), objects, min_score=0)
        page.image(image, f"{where(example)}, {len(objects.boxes)} labelled")


def _show_ranges(page: Page, metrics: Mapping[str, float]) -> None:
    """Add tables by class, by size and by distance; a column in which nothing is known is left out."""
    _table(page, "class", _CLASS_ROWS, ("AP", "AP50", "waymo/LEVEL_1", "waymo/LEVEL_2", "recall@100"), metrics)
    rows = [(f"{one.name}", f"/{one.name}") for one in (*SIZES, ABOVE_16_PIXELS)]
    _table(page, "size", rows, ("AP50", "recall@100"), metrics)
    rows = [(f"{one.name}", f"/{one.name}") for one in DISTANCES]
    _table(page, "distance", rows, ("AP50", "waymo-ours/LEVEL_2", "depth/AbsRel"), metrics)


def _show_errors(page: Page, metrics: Mapping[str, float]) -> None:
    columns = tuple(f"errors/{kind}" for kind in ERROR_KINDS)
    if any(column in metrics for column in columns):
        page.heading("Errors by kind")
        page.text(ERRORS_EXPLAINED)
        _table(page, "class", _CLASS_ROWS, columns, metrics)


def _table(
    page: Page, what: str, rows: Sequence[tuple[str, str]], columns: Sequence[str], metrics: Mapping[str, float]
) -> None:
    known = [column for column in columns if any(column + suffix in metrics for _, suffix in rows)]
    cells = [
        [name, *(f"{metrics[c + suffix]:.3f}" if c + suffix in metrics else "-" for c in known)]
        for name, suffix in rows
        if any(column + suffix in metrics for column in known)
    ]
    if cells:
        page.table(cells, [what, *known])


def chosen_examples(examples: Sequence[Example], count: int) -> list[Example]:
    """Return the examples with the most labels of `count` stretches of equal length, or all where there are fewer."""
    count = min(count, len(examples))
    edges = [len(examples) * i // count for i in range(count + 1)] if count else []
    return [
        max(examples[first:last], key=lambda example: len(example.sample.objects.boxes))
        for first, last in pairwise(edges)
    ]


def _confident(found: Detections, thresholds: Mapping[str, float]) -> Detections:
    least = found.scores.new_tensor([0.0, *(thresholds[name] for name in CLASS_NAMES[1:])])
    kept = found.scores >= least[found.classes]
    return Detections(found.boxes[kept], found.classes[kept], found.scores[kept], found.depth_m[kept])


def _teacher_panels(example: Example, class_names: Mapping[str, Sequence[str]]) -> ImageArray:
    """Return a row for each teacher: its input, its target, and the student's prediction of it."""
    sample, legend = example.sample, list[str]()
    panels: list[tuple[str, ImageArray]] = []
    for name, target in example.targets.items():
        if target.kind == "regression" and sample.lidar is not None:
            scale = max(1, _PANEL_PX // sample.image.shape[1])
            points = draw_points(sample.image, sample.lidar.pixel_uv, sample.lidar.pixel_depth_m, scale=scale)
            panels.append((f"input of {name}: the lidar's points", points))
        else:
            panels.append((f"input of {name}: the image", sample.image.permute(1, 2, 0).numpy()))
        teacher, student = _views(target, example.branch_outputs[name], class_names.get(name, ()))
        panels += [(f"target of {name}", teacher), ("the student's prediction, from the image", student)]
        legend += [one for one in class_names.get(name, ()) if one in CLASS_COLORS and one not in legend]
    return beside(panels, columns=3, legend=legend)


def _views(target: Target, branch_outputs: Tensor, class_names: Sequence[str]) -> tuple[ImageArray, ImageArray]:
    """Return the target of one image and the student's prediction, float32 [D, h, w], in equal colors."""
    scale = max(1, _PANEL_PX // target.values.shape[2])
    if target.kind == "regression":
        return colors_of_features(target.values[0], target.valid[0], branch_outputs, scale=scale)
    if not class_names or set(class_names) - set(CLASS_COLORS):
        # Classes without colors of their own: the same is done with each cell's shares of them.
        return colors_of_features(
            target.one_hot(len(branch_outputs)).values[0], target.valid[0], branch_outputs.softmax(0), scale=scale
        )
    everywhere = torch.ones_like(target.valid[0])
    return (
        colors_of_classes(target.values[0, 0], target.valid[0], class_names=class_names, scale=scale),
        colors_of_classes(branch_outputs.argmax(0), everywhere, class_names=class_names, scale=scale),
    )


def where(example: Example) -> str:
    """Return which frame an example is of."""
    return named(example.sample)


def named(sample: Sample) -> str:
    """Return which frame a sample is of."""
    key = sample.key
    return f"{key.segment} · {key.timestamp_us / 1e6:.1f} s · {key.camera}"
