"""Width and height that images are scaled to: as asked for, as a run has them already, or as its boxes need."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import pyarrow.dataset as ds
import torch
from rich.console import Console
from torch import Tensor

from datalake.commit import LakeError
from datalake.lake import Lake
from pipelines.data import Frames, read_boxes
from student.anchors import FINDABLE_PX
from student.config import StudentError
from training.checkpoint import Checkpoint, load_checkpoint
from training.run_dir import RunDir

# Width and height in pixels, or what `choose_image_size` makes of the lake.
ImageSize = tuple[int, int] | Literal["auto"]

# Those that are tried, for pictures of 3 to 2 as Waymo's front camera has them.
_WIDTHS = (384, 576, 768, 960)
# This share of the boxes is to be large enough to be found.
_LEAST_SHARE = 0.8
# The student's coarsest cells.
_CELL_PX = 32


def fixed(size: ImageSize) -> tuple[int, int]:
    """Return width and height, where `find_image_size` has replaced `auto`; raises StudentError where not."""
    if size == "auto":
        raise StudentError("image_size auto: expected width and height; find_image_size returns them for a lake")
    return size


def find_image_size(
    asked: ImageSize, lake: Lake, cameras: Sequence[str], console: Console, run: str | None = None
) -> tuple[int, int]:
    """Return width and height of the images: what is asked for, else the run's, else what is chosen for the lake.

    run: URL of the folder of a run, which goes on with the size that it began with

    What `auto` comes to is printed. Raises TrainingError for a damaged checkpoint.
    """
    if asked != "auto":
        return asked
    if run is not None and (checkpoint := load_checkpoint(RunDir(run))) is not None:
        if (recorded := trained_image_size(checkpoint)) is not None:
            console.print(f"image size {recorded[0]} x {recorded[1]}, with which the run began", highlight=False)
            return recorded
    size, told = choose_image_size(lake, cameras)
    console.print(told, soft_wrap=True, highlight=False)
    return size


def trained_image_size(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Return width and height of the images that a run is trained on, None where its checkpoint does not say."""
    try:
        width, height = ast.literal_eval(str(checkpoint.fingerprint.get("image_size")))
    except (ValueError, TypeError, SyntaxError):
        return None
    return int(width), int(height)


def choose_image_size(lake: Lake, cameras: Sequence[str]) -> tuple[tuple[int, int], str]:
    """Return the smallest size at which most labelled boxes can be found, else the largest; and why, in one line.

    It is a function of the lake's snapshot and the cameras alone, whatever is trained, and with whichever labels:
    teachers, their cached targets and students then see images of one size.
    """
    ratio = _height_to_width(lake, cameras)
    sizes = [(width, max(1, round(width * ratio / _CELL_PX)) * _CELL_PX) for width in _WIDTHS]
    # Shares of their image's area.
    areas = torch.cat([_areas(lake, split, cameras) for split in lake.splits])

    def share(size: tuple[int, int]) -> float:
        return float((areas * size[0] * size[1] >= FINDABLE_PX**2).double().mean()) if len(areas) else 1.0

    chosen = next((size for size in sizes if share(size) >= _LEAST_SHARE), sizes[-1])
    largest = ", the largest that is tried" if share(chosen) < _LEAST_SHARE else ""
    why = f"{share(chosen):.0%} of the {len(areas):,} boxes are at least {FINDABLE_PX:g} px there"
    if chosen != sizes[0]:
        before = sizes[sizes.index(chosen) - 1]
        why += f", {share(before):.0%} at {before[0]} x {before[1]}"
    return chosen, f"image size {chosen[0]} x {chosen[1]}{largest}: {why}"


def _areas(lake: Lake, split: str, cameras: Sequence[str]) -> Tensor:
    frames = Frames(lake=lake, split=split, cameras=tuple(cameras), image_size=(1, 1), points=False)
    boxes = read_boxes(frames).double()
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _height_to_width(lake: Lake, cameras: Sequence[str]) -> float:
    """Return the proportions that most of the cameras' images have; of as many, the highest."""
    shown = ds.field("camera").isin(list(cameras))
    sizes = lake.scan("image", ["width", "height"], filter=shown).to_table()
    counts = Counter(zip(sizes["width"].to_pylist(), sizes["height"].to_pylist(), strict=True))
    if not counts:
        raise LakeError(
            f"{lake.store.url}: the lake has 0 images of {', '.join(cameras)} to choose a size for; name other cameras,"
            " or give --image-size"
        )
    ratios = Counter[float]()
    for (width, height), count in counts.items():
        ratios[height / width] += count
    return max(ratios, key=lambda ratio: (ratios[ratio], ratio))
