"""Label images by two teachers: `python pipelines/autolabel.py --lake URL --teachers NAME=FOLDER … --name NAME`.

The mask teacher proposes boxes, the lidar teacher confirms or refutes them. How likely a box is right is calibrated on
the human labels of another split; of all others only sizes matter, to `--image-size auto`. The labels become the table
`autolabel_NAME` of the lake, from which `train.py --auto-labels NAME` learns.

Runs by itself on this machine's cores, or unchanged as `ray job submit --working-dir . -- python pipelines/autolabel.py
…` on a cluster. With `--local` it needs no Ray: its tasks run in processes of this machine. On a GPU it runs in this
process. Run it again after any interruption: segments that are committed are skipped.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from datalake.cli import run_command
from datalake.commit import Commit, LakeError
from datalake.derived_table import Origin, missing_segments, read_derived_commits
from datalake.fanout import RunTasks
from datalake.lake import Lake, open_lake
from datalake.process_tasks import run_in_processes
from datalake.progress_bar import ProgressBar
from datalake.ray_tasks import run_on_ray
from datalake.task import attempt
from pipelines.autolabel_judgement import SOURCES, Judgement, judge, lidar_thresholds
from pipelines.cluster import cluster
from pipelines.data import check_no_leakage
from pipelines.device import device_of
from pipelines.image_size import ImageSize, find_image_size
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from pipelines.train_config import TrainConfig
from student.report.charts import reliability
from teachers.autolabel.calibration import Calibration, calibrate
from teachers.autolabel.proposer import LabelTeachers
from teachers.autolabel.table import Labelled, origin_of
from teachers.autolabel.task import ProposedImage, SegmentTask, label_task, propose_segment
from teachers.autolabel.truth import matched_objects
from teachers.card import TeacherError
from teachers.loading import parse_teachers, read_cards
from training.run_dir import RunDir

Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class AutolabelConfig:
    """Label the images of a split by what a mask teacher and a lidar teacher agree on."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # The mask teacher and the lidar teacher, as NAME=FOLDER. The mask teacher alone labels without confirmation.
    teachers: tuple[str, ...]
    # The table will be called autolabel_NAME.
    name: str
    # The split whose images are labelled. Nothing depends on its human labels.
    split: str = "train"
    # The split whose human labels say how often the teachers are right.
    calibrate_on: str = "val"
    # At most about so many of its images, whole segments drawn by their names.
    calibration_images: int = 2000
    # Of each type so many of the labels are to be right; the threshold on the score follows.
    precision: float = 0.8
    # What is less likely than this to be right counts as background. What is between is ignored in training.
    background: float = 0.1
    # Width and height that images are scaled to; `auto`: as `train.py` chooses them by default.
    image_size: ImageSize = "auto"
    # Then judge the labels on this split against its human labels: by the mask teacher alone, the lidar teacher alone,
    # and both.
    judge: str | None = None
    # Where the reliability diagram of the judged split goes, as PNG: a local path, s3:// or gs://.
    diagram: str | None = None
    # Where the teachers run: cpu, cuda, cuda:1 …; by default on the GPU if there is one.
    device: str = "auto"
    # Work in processes of this machine, one for each CPU, without Ray.
    local: bool = False


def run(config: AutolabelConfig, console: Console) -> int:
    """Label what is missing, print a closing line and the judgement; return 0 only if every segment has labels."""
    check_options(config)
    lake = open_lake(absolute(config.lake))
    teachers = {name: absolute(url) for name, url in parse_teachers(config.teachers).items()}
    cards = read_cards(teachers)
    named = LabelTeachers.of(teachers, cards)
    _check_splits(config, lake)
    evaluated = [config.split, config.calibrate_on, *([config.judge] if config.judge else [])]
    check_no_leakage(cards, lake, evaluated)
    size = find_image_size(config.image_size, lake, TrainConfig.cameras, console)
    settings: dict[str, Any] = {
        "calibrate_on": config.calibrate_on,
        "calibration_images": config.calibration_images,
        "precision": config.precision,
        "background": config.background,
    }
    by_architecture = {card.architecture: card for card in cards.values()}
    asked = origin_of(config.name, by_architecture, size, settings)
    device = device_of(config.device)
    here = device.type == "cuda"
    tasks = _Tasks(
        lake, named, size, str(device), _run_here if here else run_in_processes if config.local else run_on_ray
    )
    with nullcontext() if here or config.local else cluster(), ProgressBar(console) as bar:
        known = _calibration_of_table(lake, asked)
        if known is None:
            calibrated = tasks.propose("calibrate", _drawn(lake, config), bar.update)
            right = [(one.evidence, _right(one)) for one in calibrated]
            known = {
                **calibrate(right, config.precision, config.background, lidar=named.lidar is not None).to_plain(),
                "images": len(calibrated),
                "lidar_alone": lidar_thresholds(calibrated, config.precision),
            }
        calibration = Calibration.from_plain(known)
        origin = origin_of(config.name, by_architecture, size, {**settings, "calibration": known})
        started = time.monotonic()
        todo = missing_segments(lake, config.split, origin)
        labelled, failures = tasks.label(todo, (origin, calibration), bar.update)
        wall_s = time.monotonic() - started
        judged = None if config.judge is None else tasks.propose("judge", lake.in_split(config.judge), bar.update)
    for line in _thresholds(calibration):
        console.print(line, soft_wrap=True, highlight=False)
    present = len(lake.in_split(config.split)) - len(todo)
    console.print(
        f"{origin.table}, split {config.split}: {sum(one.committed for one in labelled):,} segments labelled,"
        f" {present:,} there before; {sum(one.images for one in labelled):,} images"
        f" in {wall_s:,.1f} s, {sum(one.labels for one in labelled):,} labels,"
        f" {sum(one.ignored for one in labelled):,} ignored",
        soft_wrap=True,
        highlight=False,
    )
    for segment, reason in failures.items():
        console.print(f"failed {segment}: {reason}", soft_wrap=True, highlight=False, markup=False)
    if judged is not None:
        judgement = judge(judged, calibration, known["lidar_alone"])
        show(judgement, console)
        if config.diagram is not None:
            curves = {
                name: [(one.count, one.mean_score, one.right) for one in bins]
                for name, bins in judgement.reliability.items()
            }
            folder, _, file = absolute(config.diagram).rpartition("/")
            RunDir(folder).write(file, reliability(curves))
    return 1 if failures else 0


@dataclass(frozen=True, slots=True)
class _Tasks:
    """Hands out segments of a lake, a task for each."""

    lake: Lake
    teachers: LabelTeachers
    image_size: tuple[int, int]
    device: str
    run: RunTasks

    def propose(self, stage: str, bases: Sequence[Commit], progress: Progress) -> list[ProposedImage]:
        """Return what the teachers say of each image, in the order of the segments; raises where a segment fails."""
        found: dict[str, list[ProposedImage]] = {}
        for segment, result in self._done(stage, propose_segment, bases, (), progress):
            if isinstance(result, BaseException):
                raise TeacherError(f"{segment}: {_one_line(result)}") from result
            found[segment] = result
        return [image for base in bases for image in found[base.segment]]

    def label(
        self, bases: Sequence[Commit], arguments: tuple[Any, ...], progress: Progress
    ) -> tuple[list[Labelled], dict[str, str]]:
        """Return what became of the segments, and of which why they have no labels."""
        labelled, failures = [], {}
        for segment, result in self._done("label", label_task, bases, arguments, progress):
            if isinstance(result, BaseException):
                failures[segment] = _one_line(result)
            else:
                labelled.append(result)
        return labelled, failures

    def _done(
        self,
        stage: str,
        function: Callable[..., Any],
        bases: Sequence[Commit],
        arguments: tuple[Any, ...],
        progress: Progress,
    ) -> Iterator[tuple[str, Any]]:
        images = {base.segment: sum(len(cameras) for cameras in base.chunks) for base in bases}
        done, total = 0, sum(images.values())
        progress(stage, 0, total, "images")
        for segment, result in self.run(function, [(base.segment, (self._task(base), *arguments)) for base in bases]):
            done += images[segment]
            progress(stage, done, total, "images")
            yield segment, result

    def _task(self, base: Commit) -> SegmentTask:
        return SegmentTask(
            lake=self.lake.store.url,
            snapshot=self.lake.snapshot,
            base=base,
            teachers=self.teachers,
            image_size=self.image_size,
            device=self.device,
            # One for each CPU, processes do not share their cores.
            threads=None if self.run is _run_here else 1,
        )


def _run_here(function: Callable[..., Any], calls: Iterable[tuple[Any, tuple[Any, ...]]]) -> Iterator[tuple[Any, Any]]:
    for item, arguments in calls:
        yield item, attempt(function, *arguments)


def _check_splits(config: AutolabelConfig, lake: Lake) -> None:
    """Raise TeacherError where labels would be calibrated by those that they replace, or judged by those."""
    if config.diagram is not None and config.judge is None:
        raise TeacherError("--diagram: expected --judge SPLIT, whose reliability it shows")
    calibrated = {base.segment for base in lake.in_split(config.calibrate_on)}
    for option, split in (("--split", config.split), ("--judge", config.judge)):
        shared = sorted(calibrated & {base.segment for base in lake.in_split(split)}) if split else []
        if shared:
            raise TeacherError(
                f"{option} {split}: its segment {shared[0]} is in split {config.calibrate_on} too, whose human labels"
                " say how often the teachers are right; name another --calibrate-on"
            )


def _calibration_of_table(lake: Lake, asked: Origin) -> dict[str, Any] | None:
    """Return the calibration that labels of this name were made with; None where there are none yet.

    A labelling that goes on must not calibrate anew: another number of threads would change the last bits.

    asked: the origin without a calibration; raises LakeError where the labels were made with others
    """
    for part in read_derived_commits(lake.store, asked.table, lake.commits):
        if part is None:
            continue
        made = {name: value for name, value in part.origin.settings.items() if name != "calibration"}
        if made != asked.settings:
            differing = sorted(
                name for name in made.keys() | asked.settings.keys() if made.get(name) != asked.settings.get(name)
            )
            told = ", ".join(f"{name} {made.get(name)}, not {asked.settings.get(name)}" for name in differing)
            raise LakeError(
                f"{lake.store.url}: table {asked.table}, split {part.split}: made with other settings: {told};"
                " use these, or another --name"
            )
        calibration: dict[str, Any] = part.origin.settings["calibration"]
        return calibration
    return None


def _drawn(lake: Lake, config: AutolabelConfig) -> list[Commit]:
    """Return segments of the split to calibrate on, drawn by their names, with about as many images as asked for."""
    drawn: list[Commit] = []
    images = 0
    for base in sorted(
        lake.in_split(config.calibrate_on), key=lambda base: hashlib.sha256(base.segment.encode()).digest()
    ):
        if drawn and images >= config.calibration_images:
            break
        drawn.append(base)
        images += sum(len(cameras) for cameras in base.chunks)
    return drawn


def _right(one: ProposedImage) -> Any:
    found = one.evidence
    return matched_objects(found.boxes, found.types, found.mask_score, one.boxes, one.types) >= 0


def _thresholds(calibration: Calibration) -> Iterator[str]:
    for name, one in calibration.types.items():
        of_frames = ((one.both_threshold, "with lidar"), (one.alone_threshold, "without"))
        told = ", ".join(
            f"{'no label' if threshold is None else f'from {threshold:.2f}'} {frames}"
            for threshold, frames in (of_frames if one.both is not None else of_frames[1:])
        )
        yield f"{name}: labels of precision {calibration.precision:g} have a score {told}"
    for name in ("VEHICLE", "PEDESTRIAN", "CYCLIST"):
        if name not in calibration.types:
            yield f"{name}: too few detections to calibrate; its detections are ignored"


def show(judgement: Judgement, console: Console) -> None:
    """Print the judgement as tables."""
    table = Table(title=f"{judgement.images:,} images", title_justify="left")
    for name in ("objects", "by", "labels", "precision", "recall", "AP50", "AbsRel"):
        table.add_column(name, justify="left" if name in ("objects", "by") else "right")
    groups = dict.fromkeys(row.group for row in judgement.rows)
    for group in groups:
        for row in sorted(
            (row for row in judgement.rows if row.group == group), key=lambda row: SOURCES.index(row.source)
        ):
            first = f"{group} ({row.objects:,})" if row.source == SOURCES[0] else ""
            metrics = (row.precision, row.recall, row.ap50, row.abs_rel)
            table.add_row(first, row.source, f"{row.labels:,}", *(_figure(value) for value in metrics))
    console.print(table)
    equal = Table(title="false labels at the recall of the mask teacher's labels", title_justify="left")
    for name in ("class", "recall", "mask", "consensus", "mask at .95 of it", "consensus at .95 of it"):
        equal.add_column(name, justify="right")
    for one in judgement.equal_recall:
        false = (one.mask, one.consensus, one.mask_below, one.consensus_below)
        equal.add_row(one.class_name, f"{one.recall:.3f}", *("-" if n is None else f"{n:,}" for n in false))
    console.print(equal)
    for name, bins in judgement.reliability.items():
        told = ", ".join(f"{one.mean_score:.2f} {one.right:.2f} ({one.count:,})" for one in bins)
        console.print(f"{name}: score and share that is right: {told}", soft_wrap=True, highlight=False)


def _figure(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    """Run from the command line."""
    run_command("autolabel", AutolabelConfig, run, __doc__)


if __name__ == "__main__":
    main()
