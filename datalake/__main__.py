"""`python -m datalake build|info|verify|vacuum|show|export|view --lake URL`: build a lake, look at it, check it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import tyro
from rich.console import Console
from rich.progress import track

from datalake.build_options import BuildOptions
from datalake.cli import run_command
from datalake.commit import LakeError
from datalake.export import Format, export_split
from datalake.info import print_info
from datalake.lake import open_lake
from datalake.layers import LayersOf
from datalake.limits import check_range
from datalake.missing_package import TRAIN, need
from datalake.show import save_frame
from datalake.store import Store
from datalake.vacuum import splits_of, unreferenced, vacuum
from datalake.verify import verify
from datalake.view import Coordinates, PointColor, write_recording
from datalake.view_server import free_ports, view_server


@dataclass(frozen=True, kw_only=True)
class Build(BuildOptions):
    """Build a lake of Parquet tables, in processes of this machine; `pipelines/build_lake.py` does so on Ray."""

    def run(self, console: Console) -> int:
        """Build, print the closing table, and return exit status 0 only if every segment is in the lake."""
        # The official protocol buffers are installed apart: who only looks at a lake needs none.
        from datalake.build_command import build_and_report

        return build_and_report(self, console)


@dataclass(frozen=True, kw_only=True)
class Info:
    """Print what a lake holds: rows, bytes, classes, boxes by size, depth histogram."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # A snapshot by number; the newest if not given.
    snapshot: int | None = None
    # Tell of the images for which this holds alone, as in SQL: "time_of_day = 'Night'".
    where: str | None = None

    def run(self, console: Console) -> int:
        """Print, and return exit status 0."""
        _check_snapshot(self.snapshot)
        print_info(open_lake(self.lake, self.snapshot), console, self.where)
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read every file of a snapshot and check sizes, checksums, schemas and rows."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # A snapshot by number; the newest if not given.
    snapshot: int | None = None
    # Also decode every image and every panoptic label: hours for a large lake.
    decode: bool = False

    def run(self, console: Console) -> int:
        """Print each problem on a line, and return exit status 0 only if there is none."""
        _check_snapshot(self.snapshot)
        lake = open_lake(self.lake, self.snapshot)
        problems = 0
        checks = track(
            verify(lake, decode=self.decode),
            "verify",
            len(lake.commits),
            console=console,
            disable=not console.is_terminal,
        )
        for _, found in checks:
            problems += len(found)
            for problem in found:
                console.print(f"[red]damaged[/] {problem}", soft_wrap=True, highlight=False)
        files = sum(len(commit.files) for commit in lake.commits)
        size = sum(file.bytes for commit in lake.commits for file in commit.files.values())
        console.print(
            f"snapshot {lake.snapshot}: {files:,} files, {size:,} bytes, {problems} problems", highlight=False
        )
        return 1 if problems else 0


@dataclass(frozen=True, kw_only=True)
class Vacuum:
    """Delete what killed builds left: files that no commit has, and that a record names as theirs."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # Files younger than this may belong to a running build, and are kept.
    grace_hours: float = 24.0
    # Only say what would be deleted.
    dry_run: bool = False

    def run(self, console: Console) -> int:
        """Delete, say what, and return exit status 0."""
        check_range("--grace-hours", self.grace_hours, 0)
        store = Store(self.lake)
        act = unreferenced if self.dry_run else vacuum
        names = [name for split in splits_of(store) for name in act(store, split, self.grace_hours * 3600)]
        for name in names:
            console.print(name, highlight=False)
        console.print(f"{len(names)} files {'would be deleted' if self.dry_run else 'deleted'}", highlight=False)
        return 0


@dataclass(frozen=True, kw_only=True)
class Show:
    """Draw a frame to a PNG: boxes with depth, points on the image, and the scene from above."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # The split that the segment is in.
    split: str = "train"
    # The segment's name; the first of the split if not given.
    segment: str | None = None
    # Of the images for which this holds alone, as in SQL: "time_of_day = 'Night'".
    where: str | None = None
    # The frame's place in the segment, from 0 on.
    frame: int = 0
    # The camera whose image is drawn.
    camera: str = "FRONT"
    # A student whose detections are drawn, dashed: the folder of a run of train.py.
    student: Annotated[str | None, tyro.conf.arg(name="run")] = None
    # Teachers whose targets are drawn, as NAME=FOLDER, or none alone.
    teachers: tuple[str, ...] = ("none",)
    # Where the PNG goes: a local path, s3:// or gs://.
    out: str = "frame.png"

    def run(self, console: Console) -> int:
        """Draw, say where, and return exit status 0."""
        mpl.use("agg")
        lake = open_lake(self.lake).where(self.where, self.split)
        segment = self.segment or lake.in_split(self.split)[0].segment
        layers = _model_layers(self.student, self.teachers, self.split)
        save_frame(lake, self.split, segment, self.frame, self.camera, self.out, layers)
        console.print(f"{segment} frame {self.frame} {self.camera}: {self.out}", highlight=False, soft_wrap=True)
        return 0


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a split's images and 2D boxes for other tools; continues where it was interrupted."""

    # What the annotations look like.
    format: tyro.conf.Positional[Format]
    # The lake: a local path, s3:// or gs://.
    lake: str
    # The split to export.
    split: str
    # The folder to write to: a local path, s3:// or gs://.
    out: str
    # A snapshot by number; the newest if not given.
    snapshot: int | None = None
    # The images for which this holds alone, as in SQL: "time_of_day = 'Night'".
    where: str | None = None

    def run(self, console: Console) -> int:
        """Write, say how many images, and return exit status 0."""
        _check_snapshot(self.snapshot)
        lake = open_lake(self.lake, self.snapshot)
        segments = export_split(lake, self.split, Store(self.out), self.format, self.where)
        total = len(lake.in_split(self.split))
        images = sum(track(segments, "export", total, console=console, disable=not console.is_terminal))
        console.print(f"{images:,} images of split {self.split}: {self.out}", highlight=False, soft_wrap=True)
        return 0


@dataclass(frozen=True, kw_only=True)
class View:
    """Show a segment in the Rerun viewer, in a browser of this machine, or write it. Needs the extra `view`."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # The split that the segment is in.
    split: str = "train"
    # The segment's name; the first of the split if not given.
    segment: str | None = None
    # The images for which this holds alone, as in SQL: "camera = 'FRONT'".
    where: str | None = None
    # At most so many frames, from the first on; all if not given.
    frames: int | None = None
    # What the colors of points mean; by default their class in frames with labelled points, in others their distance.
    color: PointColor | None = None
    # `world` moves the vehicle through the scene, from where it is in the first frame.
    coordinates: Coordinates = "vehicle"
    # A student to show the detections of: the folder of a run of train.py.
    student: Annotated[str | None, tyro.conf.arg(name="run")] = None
    # Teachers to show the targets of, as NAME=FOLDER, or none alone.
    teachers: tuple[str, ...] = ("none",)
    # Where the recording goes, a local path, for `rerun scene.rrd`; served for a browser if not given.
    out: Path | None = None
    # Of loopback, for the page; the recording is served at the next one. 0: any that are free.
    port: int = 9090

    def run(self, console: Console) -> int:
        """Write or serve, say where, and return exit status 0."""
        if self.frames is not None:
            check_range("--frames", self.frames, 1)
        check_range("--port", self.port, 0, 65534)
        if self.out is not None:
            segment, frames = self._write(self.out)
            console.print(f"{segment}, {frames} frames: rerun {self.out}", highlight=False, soft_wrap=True)
            return 0
        # A recording of a whole segment takes minutes: what is in the way is said before.
        ports = free_ports(self.port)
        with tempfile.TemporaryDirectory() as folder:
            recording = Path(folder) / "scene.rrd"
            segment, frames = self._write(recording)
            with view_server(recording, ports) as server:
                console.print(f"{segment}, {frames} frames: {server.url}", highlight=False, soft_wrap=True)
                server.wait()
        raise LakeError("Rerun's server has ended; run the same command again")

    def _write(self, out: Path) -> tuple[str, int]:
        """Write the recording; return its segment and number of frames."""
        lake = open_lake(self.lake).where(self.where, self.split)
        segment = self.segment or lake.in_split(self.split)[0].segment
        frames = write_recording(
            lake,
            self.split,
            segment,
            out,
            color=self.color,
            coordinates=self.coordinates,
            frames=self.frames,
            layers=_model_layers(self.student, self.teachers, self.split),
        )
        return segment, frames


def _model_layers(run: str | None, teachers: tuple[str, ...], split: str) -> LayersOf | None:
    """Return what a run's student and the teachers say of images; None where nobody is asked."""
    if run is None and teachers == ("none",):
        return None
    need("train", TRAIN, "--run" if teachers == ("none",) else "--teachers")
    # A command stands above all packages: models are imported only where somebody asks for them.
    from pipelines.model_layers import model_layers

    return model_layers(run, teachers, split)


def _check_snapshot(snapshot: int | None) -> None:
    if snapshot is not None:
        check_range("--snapshot", snapshot, 0)


Command = (
    Annotated[Build, tyro.conf.subcommand("build")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Vacuum, tyro.conf.subcommand("vacuum")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[View, tyro.conf.subcommand("view")]
)


def main() -> None:
    """Run from the command line."""
    run_command("datalake", Command, lambda command, console: command.run(console), __doc__, prog="python -m datalake")


if __name__ == "__main__":
    main()
