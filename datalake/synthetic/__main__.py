"""Write procedural drives: `python -m datalake.synthetic --out drives --segments 8 --frames 20`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from datalake.limits import check_range
from datalake.synthetic.drive import DriveConfig
from datalake.synthetic.writer import write_drives


@dataclass(frozen=True, slots=True)
class Arguments:
    """Write procedural drives as official Waymo TFRecords, one file per segment. Existing files are kept."""

    out: str
    """Folder or URL to write to."""
    segments: int
    """How many segments."""
    frames: int
    """Frames per segment, ten a second."""
    seed: int = 0
    """Another seed, another set of segments."""
    image_size: str = "384x256"
    """Width x height of the FRONT image in pixels."""
    beams: int = 64
    """Rows of the range image."""
    columns: int = 650
    """Columns of the range image."""
    cameras: str = "FRONT"
    """Waymo camera names, separated by commas."""
    workers: int = 1
    """Processes that simulate at the same time."""

    def config(self) -> DriveConfig:
        """Return the configuration; raises ValueError with one line on what is wrong."""
        for option, count, least in (
            ("--segments", self.segments, 1),
            ("--frames", self.frames, 1),
            ("--seed", self.seed, 0),
            ("--workers", self.workers, 1),
        ):
            check_range(option, count, least)
        width, _, height = self.image_size.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise ValueError(f"--image-size is {self.image_size!r}: write WIDTHxHEIGHT in pixels, such as 384x256")
        return DriveConfig(
            image_width=int(width),
            image_height=int(height),
            cameras=tuple(name.strip() for name in self.cameras.split(",")),
            beams=self.beams,
            columns=self.columns,
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 2 where the arguments make no drive."""
    arguments = tyro.cli(Arguments, args=argv, prog="python -m datalake.synthetic")
    columns = (TextColumn("segments"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("segments", total=arguments.segments)
            paths = write_drives(
                arguments.out,
                arguments.config(),
                segments=arguments.segments,
                frames=arguments.frames,
                seed=arguments.seed,
                workers=arguments.workers,
                progress=lambda _: bar.advance(task),
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(paths)} segments of {arguments.frames} frames in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
