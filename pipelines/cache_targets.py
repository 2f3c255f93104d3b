"""Store a teacher's predictions in the lake: `python pipelines/cache_targets.py --lake URL --teacher FOLDER`.

Trainings with `--cached NAME` and the same teacher, images and grid read them; its network runs only before the first
step, on a few images. Run it again after any interruption: segments that are committed are skipped.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

import time
from dataclasses import dataclass

from rich.console import Console

from datalake.cli import run_command
from datalake.derived_table import missing_segments
from datalake.lake import open_lake
from datalake.progress_bar import ProgressBar
from pipelines.device import device_of
from pipelines.image_size import ImageSize, find_image_size
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from pipelines.train_config import TrainConfig
from student.config import StudentConfig
from teachers.cached import cache_segment, origin_of
from teachers.card import TeacherError, read_card
from teachers.load import load_teacher


@dataclass(frozen=True, kw_only=True)
class CacheTargetsConfig:
    """Ask a teacher about every image of a split once, and keep its answers as a table of the lake."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # The teacher's folder, with its weights and card; any fsspec URL.
    teacher: str
    # The table will be called teacher_NAME; by default the name in the teacher's card.
    name: str | None = None
    # The split whose images are predicted.
    split: str = "train"
    # Height and width of the student's grid in cells; by default the default student's for images of this size.
    grid: tuple[int, int] | None = None
    # Width and height that images are scaled to, as in the training; `auto`: as `train.py` chooses them by default.
    image_size: ImageSize = "auto"
    # Cameras whose boxes decide what `auto` comes to, as in the training; images of all cameras are predicted.
    cameras: tuple[str, ...] = TrainConfig.cameras
    # Where the teacher runs: cpu, cuda, cuda:1 …; by default on the GPU if there is one.
    device: str = "auto"


def run(config: CacheTargetsConfig, console: Console) -> int:
    """Cache what is missing, print a closing line, and return the exit status 0."""
    check_options(config)
    started = time.monotonic()
    lake = open_lake(absolute(config.lake))
    folder = absolute(config.teacher)
    card = read_card(folder)
    width, height = find_image_size(config.image_size, lake, config.cameras, console)
    grid = config.grid or StudentConfig().grid(height, width)
    origin = origin_of(card, config.name or card.name, grid, (width, height))
    todo = missing_segments(lake, config.split, origin)
    present = len(lake.in_split(config.split)) - len(todo)
    total = sum(len(cameras) for base in todo for cameras in base.chunks)
    done = committed = size = 0
    if todo:
        # Weights are the slow part: they are not read where nothing is left to do.
        teacher = load_teacher(folder, device_of(config.device))
        if teacher.card != card:
            raise TeacherError(f"{folder}: the card changed while it was read; run this again")
        with ProgressBar(console) as bar:

            def notify(images: int) -> None:
                nonlocal done
                done += images
                bar.update("cache", done, total, "images")

            notify(0)
            for base in todo:
                if (part := cache_segment(lake, base, teacher, origin, notify)) is not None:
                    committed, size = committed + 1, size + part.file.bytes
    wall_s = time.monotonic() - started
    console.print(
        f"{origin.table}, split {config.split}: {committed:,} segments cached,"
        f" {len(todo) - committed + present:,} there before; {done:,} images in {wall_s:,.1f} s, {size:,} bytes",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def main() -> None:
    """Run from the command line."""
    run_command("cache_targets", CacheTargetsConfig, run, __doc__)


if __name__ == "__main__":
    main()
