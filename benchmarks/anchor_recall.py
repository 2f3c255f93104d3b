"""Do the fitted anchors meet the boxes that can be found? Their recall by size, beside its bound.

    python -m benchmarks.anchor_recall          # writes benchmarks/anchor_recall.md

The boxes are of simulated drives, as the demo has them at 384 x 256, and of the real segment, at each of the sizes that
`--image-size auto` tries. Anchors are fitted to training frames and tried on others. The bound is the recall of anchors
that have each box's own shape, in the places in which the fitted ones are. Ends with 1 where the recall at IoU 0.5 of
the boxes of at least 8 px is more than .03 below its bound, or below .95 on simulated drives.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import tyro
from rich.console import Console
from torch import Tensor

from benchmarks import real_segment
from datalake.build import BuildConfig
from datalake.fanout import build_lake
from datalake.lake import Lake, open_lake
from datalake.process_tasks import run_in_processes
from datalake.synthetic import DriveConfig, write_drives
from pipelines.data import Frames, read_boxes
from pipelines.image_size import choose_image_size
from student.anchors import FINDABLE_PX, AnchorReport, anchor_recall, fit_anchors
from student.config import StudentConfig

_SIZES = ((384, 256), (576, 384), (768, 512), (960, 640))
# Sides in pixels; the first are too small to be asked for.
_EDGES = (0.0, FINDABLE_PX, 16.0, 32.0, 64.0, float("inf"))
_FURTHEST, _LEAST_SIMULATED = 0.03, 0.95


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    # The real segment.
    source: Path = real_segment.Options().source
    # Simulated segments of three frames to fit to, and to try the anchors on.
    train_segments: int = 150
    val_segments: int = 30
    # Where the table goes.
    output: Path = Path("benchmarks/anchor_recall.md")


def build_drives(options: Options, folder: Path) -> Lake:
    """Build a lake of simulated drives, as the demo's are."""
    drives = DriveConfig(frame_rate_hz=2.0)
    for split, segments, seed in (("train", options.train_segments, 1), ("val", options.val_segments, 2)):
        sources = write_drives(str(folder / split), drives, segments=segments, frames=3, seed=seed, workers=2)
        settings = BuildConfig(split=split, cameras=("FRONT",))
        build_lake(sources, str(folder / "lake"), settings, lambda _: None, run=run_in_processes)
    return open_lake(str(folder / "lake"))


def boxes_of(lake: Lake, split: str, size: tuple[int, int]) -> Tensor:
    """Return the boxes float32 [N, 4] of a split in images of this width and height."""
    return read_boxes(Frames(lake=lake, split=split, cameras=("FRONT",), image_size=size, points=False))


def reports(lake: Lake, size: tuple[int, int]) -> tuple[StudentConfig, dict[str, AnchorReport]]:
    """Return the student with anchors fitted to `train`, and the report of each split."""
    config = StudentConfig()
    shapes = fit_anchors(boxes_of(lake, "train", size), levels=config.levels, stride=config.stride)
    config = replace(config, anchors=shapes)
    return config, {split: anchor_recall(config, boxes_of(lake, split, size), size[::-1]) for split in ("train", "val")}


def row(name: str, size: tuple[int, int], lake: Lake) -> tuple[str, list[AnchorReport]]:
    """Return a line of the table, and the reports of `train` and `val` that it is made of."""
    config, found = reports(lake, size)
    val = boxes_of(lake, "val", size)
    sides = (val[:, 2:] - val[:, :2]).prod(1).sqrt()
    cells = []
    for low, high in pairwise(_EDGES):
        some = anchor_recall(config, val[(sides >= low) & (sides < high)], size[::-1])
        recall = f"{some.recall[0.5]:.3f} / {some.bound:.3f}" if low else f"{some.small[0.5]:.3f}"
        cells.append(f"{recall} ({some.boxes:,})" if some.boxes else "none")
    large = [f"{report.recall[0.5]:.3f} / {report.bound:.3f}" for report in found.values()]
    share = found["val"].findable / found["val"].boxes
    return f"| {name} | {size[0]} x {size[1]} | {share:.0%} | {' | '.join([*large, *cells])} |", [*found.values()]


def run(options: Options, console: Console) -> int:
    """Measure, write and print the table, and return the exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        simulated = build_drives(options, Path(scratch))
        real = open_lake(real_segment.build(options.source, Path(scratch)))
        rows = [row("simulated", _SIZES[0], simulated), *(row("real", size, real) for size in _SIZES)]
        chosen = [choose_image_size(lake, ("FRONT",))[1] for lake in (simulated, real)]
    names = [f"{low:g} to {high:g} px" for low, high in pairwise(_EDGES[1:-1])]
    heads = ["boxes", "images", "at least 8 px", "these: train", "val", "below", *names, f"from {_EDGES[-2]:g} px"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(line for line, _ in rows)]
    text = "\n".join(lines)
    options.output.write_text(_PAGE.format(table=text, simulated=chosen[0], real=chosen[1]))
    console.print(text, soft_wrap=True, highlight=False)
    near = all(report.recall[0.5] >= report.bound - _FURTHEST for _, found in rows for report in found)
    return 0 if near and all(report.recall[0.5] >= _LEAST_SIMULATED for report in rows[0][1]) else 1


_PAGE = """# Recall of fitted anchors

`python -m benchmarks.anchor_recall` makes this table. Share of the boxes that some anchor overlaps by IoU 0.5. Anchors
are fitted to the boxes of `train`; the columns by size are of `val`, with the number of boxes. Behind the slash is the
bound: the recall of anchors of each box's own shape in the same places. The real boxes are of one segment.

{table}

`--image-size auto` says:

- of the simulated drives: {simulated}
- of the real segment: {real}
"""


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Options, description=__doc__), Console()))
