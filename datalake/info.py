"""What is in a lake: counts, classes, sizes, distances."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from datalake.lake import Lake

# Box heights in pixels (COCO's area bounds, taken as squares) and object distances in metres.
_HEIGHTS_PX = (0, 8, 16, 32, 64, 96, 192, np.inf)
_DEPTHS_M = (0, 5, 10, 20, 30, 40, 50, 75, np.inf)
_BAR_WIDTH = 40
_KEYS = ["segment", "timestamp_us", "camera"]


def print_info(lake: Lake, console: Console, where: str | None = None) -> None:
    """Print what the snapshot holds, split by split; counts come from the commits, distributions from `label`.

    where: a condition on images; the distributions are then of the labels of those for which it holds
    """
    lake = lake.where(where)
    console.print(f"{lake.store.url}: snapshot {lake.snapshot}, points {lake.points_mode}", highlight=False)
    for split in lake.splits:
        commits = lake.in_split(split)
        table = Table(title=f"split {split}", title_justify="left")
        for heading in ("table", "rows", "bytes", "files"):
            table.add_column(heading, justify="left" if heading == "table" else "right")
        for name in lake.tables:
            files = [commit.files[name] for commit in commits if name in commit.files]
            rows, size = sum(file.rows for file in files), sum(file.bytes for file in files)
            table.add_row(name, f"{rows:,}", f"{size:,}", f"{len(files):,}")
        console.print(table)
        frames, points = sum(commit.frames for commit in commits), sum(commit.points for commit in commits)
        formats = ", ".join(sorted({commit.format for commit in commits}))
        counts = f"{len(commits):,} segments, {frames:,} frames, {points:,} points"
        console.print(f"{counts}, built from {formats}", highlight=False)
        if incomplete := [commit.segment for commit in commits if not commit.is_complete]:
            told = f"{len(incomplete):,} of them of sources that end inside a record (first: {incomplete[0]})"
            console.print(told, highlight=False)
        if where is not None:
            images = lake.images(_KEYS, split)
            moments = images.group_by(["segment", "timestamp_us"]).aggregate([])
            told = f"{len(images):,} images of {len(moments):,} frames where {where}"
            console.print(told, highlight=False, markup=False)
        _print_labels(lake, split, console, None if where is None else images)


def _print_labels(lake: Lake, split: str, console: Console, images: pa.Table | None) -> None:
    """Print the distributions of the split's labels; those of these images alone, if any are given."""
    labels = lake.scan("label", [*_KEYS, "type", "y0", "y1", "depth_m"], split=split).to_table()
    if images is not None:
        labels = labels.join(images, _KEYS, join_type="left semi")
    for column in ("type", "camera"):
        counts = labels.column(column).value_counts()
        _print_bars(
            f"2D boxes by {column}",
            {entry["values"].as_py(): entry["counts"].as_py() for entry in counts},
            console,
        )
    height_px = pc.subtract(labels.column("y1"), labels.column("y0")).to_numpy()
    _print_bars("2D boxes by height", _histogram(height_px, _HEIGHTS_PX, "px"), console)
    depth_m = labels.column("depth_m")
    bars = _histogram(depth_m.drop_null().to_numpy(), _DEPTHS_M, "m")
    _print_bars("2D boxes by depth", {**bars, "no point": depth_m.null_count}, console)


def _histogram(values: np.ndarray, edges: tuple[float, ...], unit: str) -> dict[str, int]:
    counts, _ = np.histogram(values, edges)
    names = [
        f"{low:g}-{high:g} {unit}" if np.isfinite(high) else f"over {low:g} {unit}"
        for low, high in itertools.pairwise(edges)
    ]
    return dict(zip(names, counts.tolist(), strict=True))


def _print_bars(title: str, counts: dict[str, int], console: Console) -> None:
    table = Table(title=title, show_header=False, title_justify="left", box=None)
    bar = "#" if console.options.ascii_only else "█"
    most = max(counts.values(), default=0) or 1
    for name, count in counts.items():
        table.add_row(name, f"{count:>8,}", bar * round(count / most * _BAR_WIDTH))
    console.print(table)
