"""What students lose without their branches, on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from torch import Tensor

from student.detections import CLASS_NAMES
from student.evaluation.branches import Ablation
from student.evaluation.responses import Response
from student.report.charts import heat_map
from student.report.damage import damage
from student.report.evaluation import where
from student.report.images import ImageArray, beside, draw_detections, scale_to
from student.report.page import Page

# Run -> the student as it is, then without each branch.
Ablations = Mapping[str, Sequence[Ablation]]

# Metric -> its title, and whether more of it is better.
_METRICS = {
    f"{metric}{suffix}": (f"{title}\n{name}" if name else title, more)
    for metric, title, more in (
        ("AP50", "AP50", True), ("recall@100", "recall", True), ("depth/AbsRel", "AbsRel", False),
    )
    for name, suffix in (("", ""), *((name, f"/{name}") for name in CLASS_NAMES[1:]))
}  # fmt: skip
_LEAST_SCORE, _PANEL_PX, _COLUMNS = 0.5, 768, 3


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


def response_table(responses: Sequence[Response]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows: the response to a branch a row, by class."""
    rows = []
    for one in responses:
        row = [one.branch, f"{one.share:.1%}"]
        for name in CLASS_NAMES[1:]:
            seen = one.contrasts.get(name)
            row.append(f"{seen.ratio:.2f} (t {seen.t:.1f}, n {seen.images})" if seen else "-")
        rows.append(row)
    return ["branch", "share", *CLASS_NAMES[1:]], rows


def fill_responses(page: Page, responses: Mapping[str, Sequence[Response]], ablations: Ablations) -> None:
    """Draw how the proposals' first convolution responds to the branches of one or more runs."""
    page.heading("Response to each branch")
    page.text(
        "The first convolution of the proposal network, as it acts on each branch through the fusion: the linear path,"
        " with the statistics of the norm between as they are in each image, and without the ReLU. The response is the"
        " norm over its channels, on the finest level. By class: its mean inside labelled boxes over that outside of"
        " all, the t statistic of their difference over images, and the number of these."
    )
    for run, found in responses.items():
        header, rows = response_table(found)
        page.text(run)
        page.table(rows, header)
        for number, example in enumerate(ablations[run][0].examples):
            image = example.sample.image
            most = max(float(one.maps[number].max()) for one in found)
            scale = scale_to(_PANEL_PX, image)
            panels = [(one.branch, _colored(one.maps[number] / max(most, 1e-12))) for one in found]
            objects = draw_detections(image, example.found, example.sample.objects, min_score=2.0, scale=scale)
            caption = f"{where(example)}. Brighter: a stronger response, on one scale for all branches."
            page.image(beside([("labelled", objects), *panels], columns=2), caption)


def _colored(values: Tensor) -> ImageArray:
    """Return the square roots of values float32 [h, w] within 0 … 1 as colors uint8 [h, w, 3]."""
    colors: ImageArray = mpl.colormaps["magma"](values.clamp(0, 1).sqrt().numpy(), bytes=True)[..., :3]
    return colors


def fill_page(page: Page, ablations: Ablations) -> None:
    """Draw the ablations of one or more runs on a page."""
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
        page.image(_matrix(found), "A row for each branch and what stands in its place.")
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


def _matrix(found: Sequence[Ablation]) -> bytes:
    clean = found[0]
    metrics = {name: what for name, what in _METRICS.items() if name in clean.metrics}
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


def _written(clean: Ablation, one: Ablation, metric: str) -> str:
    if metric not in one.metrics or metric not in clean.metrics:
        return "-"
    if one is clean:
        return f"{one.metrics[metric]:.3f}"
    return f"{one.metrics[metric] - clean.metrics[metric]:+.3f}"
