"""What natural corruptions of images leave of students, on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from student.detections import CLASS_NAMES
from student.evaluation.corruptions import CLEAN, STRENGTHS, UNCHANGED, CorruptionResult, kept
from student.report.charts import heat_map, over_strength
from student.report.damage import damage
from student.report.evaluation import where
from student.report.images import beside, draw_detections, scale_to
from student.report.page import Page

# Run -> the clean images, then each corruption.
Corrupted = Mapping[str, Sequence[CorruptionResult]]

# Metric -> its title, and whether more of it is better.
_METRICS = {
    "AP50": ("AP50", True),
    **{f"AP50/{name}": (f"AP50\n{name}", True) for name in CLASS_NAMES[1:]},
    "recall@100": ("recall@100", True),
    "depth/AbsRel": ("AbsRel, found", False),
}
_LEAST_SCORE, _PANEL_PX, _COLUMNS = 0.5, 768, 3
# Of each kind this strength is shown in images.
_SHOWN = 2


def table(found: Corrupted) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows: a corruption a row, each run's AP50 and what is left of it side by side."""
    header, rows = ["corruption"], [[str(one.corruption)] for one in next(iter(found.values()))]
    for run, each in found.items():
        prefix = f"{run}: " if len(found) > 1 else ""
        header += [f"{prefix}{title}" for title in ("AP50", "left", "recall@100", "AbsRel")]
        clean = each[0].metrics
        for row, one in zip(rows, each, strict=True):
            ap50 = one.metrics.get("AP50")
            row.append("-" if ap50 is None else f"{ap50:.3f}")
            row.append(f"{ap50 / clean['AP50']:.0%}" if ap50 is not None and clean.get("AP50") else "-")
            row += [_written(one, name) for name in ("recall@100", "depth/AbsRel")]
    mean = ["mean of all"]
    for each in found.values():
        share = kept(each)
        mean += ["-", "-" if share is None else f"{share:.0%}", "-", "-"]
    return header, [*rows, mean]


def fill_page(page: Page, found: Corrupted) -> None:
    """Draw what is left of one or more runs on a page."""
    first = next(iter(found.values()))[0]
    page.text(
        "Each image is corrupted in five ways (after ImageNet-C), each at three strengths, in the same way for every"
        f" run. {first.images:,} images with {first.objects:,} labelled boxes; the fewer they are, the less do small"
        " differences mean. AbsRel is of the detections that are right, which under a corruption are fewer and easier"
        " ones."
    )
    page.heading("AP50 over the strength")
    panels = {
        kind: {
            run: (
                [float(one.corruption.strength) for one in each if one.corruption.kind in (CLEAN, kind)],
                [one.metrics.get("AP50", 0.0) for one in each if one.corruption.kind in (CLEAN, kind)],
            )
            for run, each in found.items()
        }
        for kind in STRENGTHS
    }
    page.image(over_strength(panels, "strength (0: clean)"), "A panel for each kind, a line for each run.")
    page.heading("All corruptions")
    header, rows = table(found)
    page.table(rows, header)
    for run, each in found.items():
        page.heading(f"What is lost: {run}")
        page.image(_matrix(each), "Red: worse than on clean images, white: unchanged, blue: better.")
        for number in range(len(each[0].examples)):
            panels_of = [
                (str(one.corruption), _drawn(one, number))
                for one in each
                if one.corruption == UNCHANGED or one.corruption.strength == _SHOWN
            ]
            page.image(beside(panels_of, columns=_COLUMNS), where(each[0].examples[number]))


def _drawn(one: CorruptionResult, number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    example = one.examples[number]
    image = (example.sample.image * 255).round().byte()
    return draw_detections(
        image, example.found, example.sample.objects, min_score=_LEAST_SCORE, scale=scale_to(_PANEL_PX, image)
    )


def _matrix(found: Sequence[CorruptionResult]) -> bytes:
    clean = found[0].metrics
    metrics = {name: what for name, what in _METRICS.items() if name in clean}
    values = [
        [
            damage(clean[name], one.metrics[name], more) if name in one.metrics else np.nan
            for name, (_, more) in metrics.items()
        ]
        for one in found
    ]
    texts = [[_written(one, name) for name in metrics] for one in found]
    titles = [title for title, _ in metrics.values()]
    return heat_map(np.array(values, np.float64), texts, [str(one.corruption) for one in found], titles, "corruption")


def _written(one: CorruptionResult, metric: str) -> str:
    return f"{one.metrics[metric]:.3f}" if metric in one.metrics else "-"
