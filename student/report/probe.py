"""What linear probes read off students, on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from student.evaluation.probed_frames import ProbeResult
from student.report.charts import over_strength
from student.report.page import Page

# Run, or what has random weights -> its probes.
Probes = Mapping[str, Sequence[ProbeResult]]

_TASKS = {
    "panoptic": "mIoU of the panoptic classes, each cell",
    "depth": "AbsRel of the distance, each cell (less is better)",
    "time_of_day": "mean recall of the time of day, each frame",
    "weather": "mean recall of the weather, each frame",
}


def table(probes: Probes) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows: a task and a share a row, run beside run, and a guess without looking."""
    keys = list(dict.fromkeys((one.task, one.share, one.frames) for each in probes.values() for one in each))
    header = ["read", "metric", "frames", *probes, "a guess"]
    rows = []
    for task, share, frames in keys:
        found = {
            name: next((o for o in each if (o.task, o.share) == (task, share)), None) for name, each in probes.items()
        }
        some = next(one for one in found.values() if one is not None)
        cells = ["-" if one is None else f"{one.metrics[one.metric]:.3f}" for one in found.values()]
        rows.append([task, some.metric, f"{frames:,}", *cells, f"{some.guessed[some.metric]:.3f}"])
    return header, rows


def fill_page(page: Page, probes: Probes, examined: int) -> None:
    """Draw what was read on a page."""
    page.text(
        "Trunk and branches stay as they are; their finest maps, side by side and standardized, go through one 1 x 1"
        " convolution, which is trained to read off them what nobody taught the student: the panoptic class and the"
        " distance of each cell, and time of day and weather of a frame (means over its cells). Every probe has the"
        " best of three learning rates, on frames that it does not learn from. Beside each student stands one of the"
        " same architecture with random weights: what is read off that is no merit of what was learned."
    )
    page.text(
        f"Judged on {examined:,} frames; the fewer they are, the less do small differences mean. A guess says of"
        " everything the most frequent class, or one distance."
    )
    page.heading("Over the frames that probes learn from")
    panels = {}
    for task in dict.fromkeys(one.task for each in probes.values() for one in each):
        panels[_TASKS.get(task, task)] = {
            name: (
                [float(one.frames) for one in each if one.task == task],
                [one.metrics[one.metric] for one in each if one.task == task],
            )
            for name, each in probes.items()
        }
    page.image(over_strength(panels, "frames"), "A line for each student.")
    page.heading("All probes")
    header, rows = table(probes)
    page.table(rows, header)
    page.text(
        "Learning rates: "
        + "; ".join(
            f"{name}: " + ", ".join(f"{one.task} {one.frames:,} frames {one.rate:g}" for one in each)
            for name, each in probes.items()
        )
    )
