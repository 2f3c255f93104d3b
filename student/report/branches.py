"""What students lose without their branches, on a page."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from datalake.sample import Sample
from student.detections import CLASS_NAMES, Detections
from student.evaluation.agreement import ABLATION, GRADIENT, RESPONSE, Agreement
from student.evaluation.attribution import Attribution
from student.evaluation.branches import Ablation
from student.evaluation.ranges import DISTANCES, SIZES
from student.evaluation.responses import Contrast, PastBranches, Response
from student.report.charts import heat_map, over_strength
from student.report.damage import damage
from student.report.evaluation import named, where
from student.report.images import ImageArray, beside, draw_detections, scale_to
from student.report.page import Page

# Run -> the student as it is, then without each branch.
Ablations = Mapping[str, Sequence[Ablation]]

_CHIEF = (("AP50", "AP50", True), ("recall@100", "recall", True), ("depth/AbsRel", "AbsRel", False))
# Metric -> its title, and whether more of it is better.
_BY_CLASS = {
    f"{metric}{suffix}": (f"{title}\n{name}" if name else title, more)
    for metric, title, more in _CHIEF
    for name, suffix in (("", ""), *((name, f"/{name}") for name in CLASS_NAMES[1:]))
}
_SIZES, _DISTANCES = [one.name for one in SIZES], [one.name for one in DISTANCES]
_VIEWS = (RESPONSE, ABLATION, GRADIENT)
_SELECTION = {"weight": "weights", "gradient": "gradient"}
NO_DETECTIONS = Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0))
# At the end of a run's name in a study.
_SEED = re.compile(r"-\d+$")
_LEAST_SCORE, _PANEL_PX, _COLUMNS = 0.5, 768, 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunResponses:
    """The responses of one run; the maps are of these samples."""

    branches: list[Response]
    past: list[PastBranches]
    samples: list[Sample]


def table(ablations: Ablations) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows: a branch and its replacement a row, each run's differences side by side."""
    header = ["branch"]
    rows = [[name] for name in dict.fromkeys(str(one) for found in ablations.values() for one in found)]
    chief = {"AP50": "AP50", "recall@100": "recall@100", "depth/AbsRel": "AbsRel"}
    for run, found in ablations.items():
        prefix = f"{run}: " if len(ablations) > 1 else ""
        header += [f"{prefix}{title}" for title in chief.values()]
        by_name = {str(one): one for one in found}
        for row in rows:
            known = by_name.get(row[0])
            row += [_written(found[0], known, metric) if known else "-" for metric in chief]
    return header, rows


def seeds_table(ablations: Ablations) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows: what is lost of AP50 without a branch, by class, over runs that differ by a seed.

    Of `imitation-0`, `imitation-1` and so on, as studies call them, a row has the mean and the standard deviation.
    """
    metrics = ["AP50", *(f"AP50/{name}" for name in CLASS_NAMES[1:])]
    lost: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run, found in ablations.items():
        for one in found:
            if one.branch is not None and one.replacement == "mean":
                of_branch = lost.setdefault((_SEED.sub("", run), one.branch), {})
                for name in metrics:
                    if name in one.metrics and name in found[0].metrics:
                        of_branch.setdefault(name, []).append(found[0].metrics[name] - one.metrics[name])
    rows = [
        [arm, branch, f"{len(values.get('AP50', []))}", *(_spread(values.get(name, [])) for name in metrics)]
        for (arm, branch), values in lost.items()
    ]
    return ["arm", "without", "runs", "all", *CLASS_NAMES[1:]], rows


def response_table(found: RunResponses) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows: the response to a branch a row, by class; then what passes the branches by."""
    rows = [[one.branch, f"{one.share:.1%}", *_contrasts(one.contrasts)] for one in found.branches]
    rows += [
        [f"past the branches, stride {one.stride}", f"{one.share:.1%}", *_contrasts(one.contrasts)]
        for one in found.past
    ]
    return ["branch", "share", *CLASS_NAMES[1:]], rows


def fill_responses(page: Page, responses: Mapping[str, RunResponses]) -> None:
    """Draw how the proposals' first convolution responds to the branches of one or more runs."""
    page.heading("Response to each branch")
    page.text(
        "The first convolution of the proposal network, as it acts on each branch through the fusion: the linear path,"
        " with the statistics of the norm between as they are in each image, and without the ReLU. The response is the"
        " norm over its channels, on the finest level. By class: its mean where the panoptic labels show the class"
        " (in its boxes, where an image has none) over that on the background, the t statistic of their difference over"
        " images, and the number of these. Past the branches: the response on a coarser level to the trunk's map that"
        " joins it there, a share of all on that level."
    )
    for run, found in responses.items():
        header, rows = response_table(found)
        page.text(run)
        page.table(rows, header)
        for number, sample in enumerate(found.samples):
            most = max(float(one.maps[number].max()) for one in found.branches)
            scale = scale_to(_PANEL_PX, sample.image)
            panels = [(one.branch, _colored(one.maps[number] / max(most, 1e-12))) for one in found.branches]
            objects = draw_detections(sample.image, NO_DETECTIONS, sample.objects, scale=scale)
            caption = f"{named(sample)}. Brighter: a stronger response, on one scale for all branches."
            page.image(beside([("labelled", objects), *panels], columns=2), caption)


def fill_attribution(page: Page, attributions: Mapping[str, Sequence[Attribution]]) -> None:
    """Draw what the branches of one or more runs account for of the objectness."""
    page.heading("Integrated gradients of the objectness")
    page.text(
        "The objectness, in logits, of the anchors that overlap labelled objects best, the mean over objects. All"
        " branches at once go from their means over all images to what they pass on; the objectness goes from one value"
        " to another, and each branch is given its part of the change. The parts must add up to the change: the last"
        " column says by how much they miss it."
    )
    for run, found in attributions.items():
        branches = list(found[0].branches)
        page.text(run)
        page.table(
            [
                [
                    one.class_name,
                    f"{one.objects:,}",
                    f"{one.before:.2f}",
                    *(f"{one.branches[name]:+.2f}" for name in branches),
                    f"{one.after:.2f}",
                    f"{one.incomplete:.1%}",
                ]
                for one in found
            ],
            ["class", "objects", "with means", *branches, "as it is", "off"],
        )


def fill_agreement(page: Page, agreements: Mapping[str, Sequence[Agreement]]) -> None:
    """Say whether the three views put the branches of one or more runs in one order."""
    page.heading("Which branch, by three views")
    page.text(
        "The branches, the one that contributes most first: by the proposal network's response to them, by what is lost"
        " of AP50 with their mean in their place, and by integrated gradients of the objectness. What each is follows"
        " below. Few images make different orders by chance."
    )
    for run, found in agreements.items():
        page.text(run)
        rows = [
            [one.class_name, *(" > ".join(one.orders.get(view, ["-"])) for view in _VIEWS), one.verdict]
            for one in found
        ]
        page.table(rows, ["class", *_VIEWS, "they have"])


def fill_selection(page: Page, histories: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Draw which branches the fusion selected over the training of one or more runs, as their logs have it."""
    page.heading("Selection of branches over the training")
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for run, rows in histories.items():
        names = dict.fromkeys(name for row in rows for name in row if name.startswith("fusion/"))
        for name in names:
            _, branch, what = name.split("/")
            points = [(row["step"], row[name]) for row in rows if name in row]
            lines = panels.setdefault(f"{run}: {_SELECTION[what]}", {})
            lines[branch] = ([step for step, _ in points], [value for _, value in points])
    if not panels:
        page.text("The logs have nothing of it; train.py --loop.diagnose-every 20 measures it every 20 steps.")
        return
    page.text(
        "Each branch's columns of the fusion's weights: their squared norm as a share of that of all columns, and the"
        " same of the gradient."
    )
    page.image(over_strength(panels, "step"), "A line for each branch.")


def _contrasts(contrasts: Mapping[str, Contrast]) -> list[str]:
    return [
        f"{one.ratio:.2f} (t {one.t:.1f}, n {one.images})" if (one := contrasts.get(name)) else "-"
        for name in CLASS_NAMES[1:]
    ]


def _colored(values: Tensor) -> ImageArray:
    """Return the square roots of values float32 [h, w] within 0 … 1 as colors uint8 [h, w, 3]."""
    colors: ImageArray = mpl.colormaps["magma"](values.clamp(0, 1).sqrt().numpy(), bytes=True)[..., :3]
    return colors


def fill_page(page: Page, ablations: Ablations, kinds: Sequence[str] = ()) -> None:
    """Draw the ablations of one or more runs on a page, and those of kinds of images."""
    page.text(
        "What a branch passes on to the fusion is replaced by its mean over all images, cell by cell, or by that of"
        " another image. free is the branch without a teacher; with all replaced, the student sees of the image only"
        " what joins its coarser levels past the branches. The first row has the metrics, the others by how much they"
        " change: red is worse, blue is better. AbsRel is of the detections that are right, which are others each time."
    )
    first = next(iter(ablations.values()))[0]
    page.text(
        f"{first.images:,} images with {first.objects:,} labelled boxes; the fewer they are, the less do small"
        " differences mean."
    )
    for run, found in ablations.items():
        page.heading(f"Without its branches: {run}")
        page.image(_matrix(found, _BY_CLASS), "A row for each branch and what stands in its place.")
        for about, names in (("size", _SIZES), ("distance", _DISTANCES), ("time of day", kinds)):
            columns = {
                f"{metric}/{name}": (f"{title}\n{name}", more) for metric, title, more in _CHIEF for name in names
            }
            if any(column in found[0].metrics for column in columns):
                page.image(_matrix(found, columns), f"The same by {about}.")
        for number, example in enumerate(found[0].examples):
            panels = []
            for one in found:
                if one.replacement in (None, "mean"):
                    shown = one.examples[number]
                    scale = scale_to(_PANEL_PX, shown.sample.image)
                    objects = shown.sample.objects
                    image = draw_detections(
                        shown.sample.image, shown.found, objects, min_score=_LEAST_SCORE, scale=scale
                    )
                    panels.append((str(one), image))
            page.image(beside(panels, columns=_COLUMNS), where(example))
    page.heading("All branches")
    header, rows = table(ablations)
    page.table(rows, header)
    if len(ablations) > 1:
        page.text(
            "What is lost of AP50 with a branch's mean in its place, by class: mean ± standard deviation over the runs"
            " of an arm, those whose names differ by the number at their end alone."
        )
        header, rows = seeds_table(ablations)
        page.table(rows, header)


def _matrix(found: Sequence[Ablation], columns: Mapping[str, tuple[str, bool]]) -> bytes:
    clean = found[0]
    metrics = {name: what for name, what in columns.items() if name in clean.metrics}
    values = [
        [
            damage(clean.metrics[name], one.metrics[name], more) if name in one.metrics else np.nan
            for name, (_, more) in metrics.items()
        ]
        for one in found
    ]
    texts = [[_written(clean, one, name) for name in metrics] for one in found]
    titles = [title for title, _ in metrics.values()]
    return heat_map(np.array(values, np.float64), texts, list(map(str, found)), titles, "without a branch")


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:+.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean:+.3f}"


def _written(clean: Ablation, one: Ablation, metric: str) -> str:
    if metric not in one.metrics or metric not in clean.metrics:
        return "-"
    if one is clean:
        return f"{one.metrics[metric]:.3f}"
    return f"{one.metrics[metric] - clean.metrics[metric]:+.3f}"
