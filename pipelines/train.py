"""Train a student from a lake: `python pipelines/train.py --lake URL --out URL --teachers NAME=FOLDER …`.

    OUT/checkpoint.pt     the student and its training, replaced as a whole every so many steps
    OUT/history.jsonl     a line for each step: losses, rates, throughput, waiting
    OUT/tensorboard/      the same for TensorBoard

Run it again after any interruption, with the same settings, and it goes on where it was. It runs by itself, or as
`ray job submit --working-dir . -- python pipelines/train.py …` on a cluster. With `--workers 0` the training runs in
this process; otherwise Ray Train starts so many workers, and starts them again when one is lost.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import torch
import tyro
from ray.exceptions import RayError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from rich.console import Console
from torch import Tensor

from datalake.cache import RangeCache
from datalake.commit import LakeError
from datalake.lake import Lake, open_lake
from datalake.sample import Sample
from datalake.space import room_in
from pipelines.classrooms import (
    all_remembered,
    class_shares,
    examine_teachers,
    look_at_points,
    open_classroom,
    parse_teachers,
    read_cards,
)
from pipelines.cluster import cluster
from pipelines.curriculum import (
    Frames,
    check_strangers,
    labelled_segments,
    mixed_batches,
    read_boxes,
    spare_places,
)
from pipelines.device import device_of
from pipelines.place import absolute
from pipelines.progress import ProgressBar
from pipelines.stop import stoppable
from student.anchors import AnchorReport, anchor_recall, fit_anchors
from student.config import AnchorShapes, BranchSpec, Feed, Preset, StudentConfig, StudentError
from student.detector import Student
from student.imitation import balanced_weights
from student.training.folder import RunFolder
from student.training.lesson import Lesson, LossWeights
from student.training.loop import LoopConfig, Plan, Trained, train
from student.training.world import World
from teachers.card import TeacherError
from teachers.training.checkpoint import Plain
from teachers.training.failure import TrainingError
from teachers.training.loop import identity_of
from teachers.training.precision import uses_bfloat16

Listen = Literal["real", "shuffled", "none"]
Anchors = Literal["fitted", "paper"]

# torchvision's own, which the paper took: made for pictures of 1333 pixels.
_PAPER_ANCHORS = AnchorShapes(sizes=((32,), (64,), (128,), (256,)), ratios=(0.5, 1.0, 2.0))
_LEVELS = 4
# Pictures that each teacher looks at before the training.
_SURVEY = 48
_TOLD = ("accuracy", "mIoU")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a Faster R-CNN with a depth head that listens to frozen teachers."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # The checkpoint and the logs go here: a local folder or any fsspec URL.
    out: str
    # Teachers as NAME=FOLDER, or none alone.
    teachers: tuple[str, ...] = ("none",)
    # Whether the student hears its teachers. Controls: `shuffled` gives each picture what they say of another, `none`
    # keeps their branches but no teacher is asked.
    listen: Listen = "real"
    # Teachers who are not asked, though the student has a branch for them.
    deaf_to: tuple[str, ...] = ()
    # The student's architecture.
    preset: Preset = "classroom"
    # Pixels per cell on which the default student imitates.
    stride: Literal[4, 8] = 4
    # What a branch passes on to the detector: what it says, the features behind that, or both.
    feed: Feed = "both"
    # Anchors fitted to the labelled boxes, or the paper's.
    anchors: Anchors = "fitted"
    # The training stops before it starts where anchors overlap a smaller share of the boxes by IoU 0.5.
    min_anchor_recall: float = 0.6
    # Seed of weights, order and chance.
    seed: int = 0
    # The split to train on. Teachers must not have seen it.
    split: str = "train"
    # The lake's snapshot; the newest by default. A run that goes on needs the one that it began with.
    snapshot: int | None = None
    # Cameras to look through.
    cameras: tuple[str, ...] = ("FRONT",)
    # Width and height that pictures are scaled to.
    image_size: tuple[int, int] = (384, 256)
    # This share of the segments keeps its labels; on the others the student learns from its teachers alone.
    labelled_fraction: float = 1.0
    # Decides which segments keep their labels.
    label_seed: int = 0
    # Pictures per step, over all workers.
    batch: int = 6
    # Of these, pictures without labels, where there are any and a teacher to learn from. By default up to half, as
    # long as each labelled picture is seen twenty times all the same.
    unlabelled: int | None = None
    # Folder in which teachers' answers are kept, for runs that show the same frames again; by default they look anew.
    remember: str | None = None
    # Local folder in which what is read of a remote lake is kept, for the next epoch and the next run.
    cache: str | None = None
    # At most so many bytes are kept there.
    cache_bytes: int = 32 << 30
    # Workers of Ray Train; 0: this process alone.
    workers: int = 0
    # How often lost workers are started again.
    max_failures: int = 3
    # Where this process trains: cpu, cuda, cuda:1 …; by default on the GPU if there is one. Workers of Ray Train take
    # a GPU each where the cluster has them.
    device: str = "auto"
    # How much each loss counts.
    weights: LossWeights = field(default_factory=LossWeights)
    # How long and how fast.
    loop: LoopConfig = field(default_factory=LoopConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Syllabus:
    """All that a worker needs to know; found out once, before the first step.

    teachers: name -> folder of those who are asked
    class_weights: of each teacher of classes
    labelled, unlabelled: pictures per step over all workers; segments of either kind
    """

    config: Train
    snapshot: int
    student: StudentConfig
    teachers: dict[str, str]
    class_weights: dict[str, Tensor]
    labelled: int
    unlabelled: int
    labelled_segments: frozenset[str]
    unlabelled_segments: frozenset[str]


def plan_training(config: Train, console: Console, progress: Callable[[str, int, int, str], None]) -> Syllabus:
    """Look at lake and teachers, print what was found, and return what the workers need.

    Raises LakeError, TeacherError, StudentError or TrainingError where the training would be in vain.
    """
    config = _located(config)
    lake = _open(config, config.snapshot)
    named = {name: absolute(url) for name, url in parse_teachers(config.teachers).items()}
    cards = read_cards(named)
    check_strangers(cards, lake, [config.split])
    with_labels, without = labelled_segments(lake, config.split, config.labelled_fraction, config.label_seed)
    if unknown := sorted(set(config.deaf_to) - named.keys()):
        raise TeacherError(
            f"--deaf-to {unknown[0]}: expected one of the teachers {', '.join(named) or '(there is none)'}"
        )
    heard = _heard(config)
    listening = bool(heard)
    unlabelled = _places(config, lake, with_labels) if listening and without else 0
    if not 0 <= unlabelled < config.batch:
        raise StudentError(f"--unlabelled {unlabelled}: expected fewer than the {config.batch} pictures of a batch")
    # What a worker would find out in its first step is said before one is started.
    for share, what, segments in (
        (config.batch - unlabelled, "labelled pictures (--batch less --unlabelled)", with_labels),
        (unlabelled, "pictures without labels (--unlabelled)", without),
    ):
        World(size=max(1, config.workers)).share(share, what)
        if share:
            _frames(config, lake, points=False, segments=segments).stream(share, shuffle=True)
    if config.listen == "shuffled" and config.batch // max(1, config.workers) < 2:
        raise StudentError("--listen shuffled: a worker needs two pictures, to give one what is said of the other")

    frames = _frames(config, lake, points=False, segments=with_labels)
    boxes = read_boxes(frames)
    shapes = fit_anchors(boxes, levels=_LEVELS) if config.anchors == "fitted" else _PAPER_ANCHORS
    student = _student_config(config, tuple(BranchSpec.of(name, card) for name, card in cards.items()), shapes)
    width, height = config.image_size
    grid = student.grid(height, width)
    report = anchor_recall(student, boxes, (height, width))
    _check_anchors(config, report, console)
    console.print(
        f"{len(with_labels):,} segments with labels, {len(without):,} without;"
        f" {config.batch - unlabelled} and {unlabelled} pictures of a batch",
        highlight=False,
    )
    weights = {}
    if listening:
        device = device_of(config.device)
        points = look_at_points(cards[name] for name in heard)
        survey = _frames(config, lake, points=points, segments=None)
        stream = survey.stream(config.batch, shuffle=True, panoptic=True)
        wanted = min(_SURVEY, stream.epoch_samples)
        batches: list[list[Sample]] = []
        for batch in stream.loader():
            batches.append(batch)
            progress("survey", min(len(batches) * config.batch, wanted), wanted, "pictures")
            if len(batches) * config.batch >= wanted:
                break
        for name, seen in examine_teachers(heard, batches, grid, device).items():
            figures = ", ".join(f"{figure} {seen.figures[figure]:.2f}" for figure in _TOLD if figure in seen.figures)
            answers = f"answers for {seen.valid_share:.0%} of the cells"
            console.print(
                f"teacher {name}: {answers}; {figures or 'nothing to compare with'}",
                soft_wrap=True,
                highlight=False,
            )
        remember = Path(config.remember) if config.remember else None
        shares = class_shares(open_classroom(heard, grid, device, remember), batches)
        weights = {name: balanced_weights(share) for name, share in shares.items()}
    return Syllabus(
        config=config,
        snapshot=lake.snapshot,
        student=student,
        teachers=heard,
        class_weights=weights,
        labelled=config.batch - unlabelled,
        unlabelled=unlabelled,
        labelled_segments=with_labels,
        unlabelled_segments=without,
    )


def attend(
    syllabus: Syllabus, world: World, progress: Callable[[int, Mapping[str, float]], None] = lambda _step, _values: None
) -> Trained:
    """Train as one of the workers, from the checkpoint if there is one."""
    config = syllabus.config
    lake = _open(config, syllabus.snapshot)
    width, height = config.image_size
    grid = syllabus.student.grid(height, width)
    remember = Path(absolute(config.remember)) if config.remember else None
    points = look_at_points(read_cards(syllabus.teachers).values())
    if points and remember is not None:
        # Nobody will look at points whose answers are all there, and they are most of what would be read.
        everything = _frames(config, lake, points=False, segments=None)
        points = not all_remembered(syllabus.teachers, everything, grid, remember)
    labelled = _frames(config, lake, points=points, segments=syllabus.labelled_segments)
    unlabelled = _frames(config, lake, points=points, segments=syllabus.unlabelled_segments)
    classroom = None
    if syllabus.teachers:
        classroom = open_classroom(syllabus.teachers, grid, world.device, remember)
    # Weights that do not depend on what was drawn before.
    torch.manual_seed(config.seed)
    lesson = Lesson(Student(syllabus.student), config.weights, syllabus.class_weights)
    plan = Plan(
        batches=mixed_batches(
            labelled, syllabus.labelled, unlabelled, syllabus.unlabelled, rank=world.rank, world_size=world.size
        ),
        labelled=syllabus.labelled,
        unlabelled=syllabus.unlabelled,
        classroom=classroom,
        seed=config.seed,
        identity=_identity(config, lake, syllabus.teachers),
        teaching="shuffled" if config.listen == "shuffled" else "real",
    )
    folder = RunFolder(absolute(config.out))
    return train(lesson, config.loop, plan, folder, world=world, progress=progress)


def run(config: Train, console: Console) -> int:
    """Train, print a closing line, and return the exit status 0."""
    with ProgressBar(console) as bar:
        syllabus = plan_training(config, console, bar.update)
    if config.workers:
        with cluster():
            _train_on_ray(syllabus)
        trained = None
    else:
        with ProgressBar(console) as bar:
            trained = attend(
                syllabus,
                World(device=device_of(config.device)),
                lambda step, _values: bar.update("train", step, config.loop.steps, "steps"),
            )
    took = f" in {trained.seconds:,.0f} s" if trained else ""
    console.print(f"trained {config.loop.steps:,} steps{took}; {absolute(config.out)}", soft_wrap=True, highlight=False)
    return 0


def _open(config: Train, snapshot: int | None) -> Lake:
    cache = None if config.cache is None else RangeCache(absolute(config.cache), config.cache_bytes)
    return open_lake(absolute(config.lake), snapshot, cache)


def _train_on_ray(syllabus: Syllabus) -> None:
    config = syllabus.config
    gpu = ray.cluster_resources().get("GPU", 0) >= config.workers
    folder = absolute(config.out)
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # the annotation is older than return values
        train_loop_config={"syllabus": syllabus},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=gpu),
        run_config=RunConfig(
            name="ray",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    try:
        # Ray Train keeps a record of its own there.
        with room_in(folder):
            result = trainer.fit()
    except WorkerGroupError as error:
        raise TrainingError(f"a worker failed: {_last_line(next(iter(error.worker_failures.values())))}") from error
    except ControllerError as error:
        raise TrainingError(f"Ray Train failed: {_last_line(error.controller_failure)}") from error
    except RayError as error:
        # The node of this process is lost, or so overloaded that the cluster takes it for lost.
        raise TrainingError(
            f"the cluster lost the training: {_last_line(error)}; run the same command again to go on"
        ) from error
    stopped = result.return_value  # type: ignore[attr-defined]  # the annotation is of an older Result
    if stopped is not None:
        raise TrainingError(stopped)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _work(settings: dict[str, Any]) -> str | None:
    """Run in each worker of Ray Train; return why the training stopped before its end, if it did.

    What all workers find alike is an answer: doing the same again would end the same way. What a worker finds in its
    own pictures is raised: the others would wait for it.
    """
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    world = World(context.get_world_rank(), context.get_world_size(), device)
    syllabus: Syllabus = settings["syllabus"]
    every = syllabus.config.loop.checkpoint_every

    def tell(step: int, values: Mapping[str, float]) -> None:
        if step % every == 0 or step == syllabus.config.loop.steps:
            ray.train.report({"step": step, **values})
            if world.rank == 0:
                print(f"step {step:,} of {syllabus.config.loop.steps:,}: " + _line(values), flush=True)

    try:
        attend(syllabus, world, tell)
    except (TrainingError, StudentError) as error:
        return str(error)
    return None


def _line(values: Mapping[str, float]) -> str:
    losses = ", ".join(f"{name[5:]} {value:.3f}" for name, value in values.items() if name.startswith("loss/"))
    return f"{losses}; {values['images_per_second']:.1f} images/s"


def _frames(config: Train, lake: Lake, *, points: bool, segments: frozenset[str] | None) -> Frames:
    return Frames(
        lake=lake,
        split=config.split,
        cameras=config.cameras,
        image_size=config.image_size,
        points=points,
        seed=config.seed,
        segments=segments,
    )


def _student_config(config: Train, branches: tuple[BranchSpec, ...], anchors: AnchorShapes) -> StudentConfig:
    if config.preset == "paper":
        return StudentConfig.paper(branches, anchors)
    return StudentConfig(branches=branches, anchors=anchors, stride=config.stride, feed=config.feed)


def _check_anchors(config: Train, report: AnchorReport, console: Console) -> None:
    console.print(str(report), soft_wrap=True, highlight=False)
    if report.recall[0.5] < config.min_anchor_recall:
        raise StudentError(
            f"anchors overlap only {report.recall[0.5]:.0%} of the boxes by IoU 0.5, --min-anchor-recall asks for"
            f" {config.min_anchor_recall:.0%}: most objects would never be proposed; use --anchors fitted, a finer"
            " stride, or lower the limit"
        )


# What does not decide about the result: where things are kept and who does the work.
_INDIFFERENT = {"out", "remember", "cache", "cache_bytes", "workers", "device", "max_failures"}


def settings_of(config: Train, device: torch.device) -> dict[str, Plain]:
    """Return what decides about a run's result, as its checkpoint has it."""
    config = _located(config)
    identity = _identity(config, _open(config, config.snapshot), _heard(config))
    return {**identity, "bfloat16": uses_bfloat16(config.loop.precision, device)}


def _identity(config: Train, lake: Lake, heard: dict[str, str]) -> dict[str, Plain]:
    kept = {name: value for name, value in identity_of(config).items() if name not in _INDIFFERENT}
    cards = {f"teacher.{name}": card.weights_sha256 for name, card in read_cards(heard).items()}
    return {**kept, **cards, "lake": lake.store.url, "snapshot": lake.snapshot, "teachers": ", ".join(cards)}


def _places(config: Train, lake: Lake, with_labels: frozenset[str]) -> int:
    """Return how many pictures of a batch go without labels."""
    if config.unlabelled is not None:
        return config.unlabelled
    labelled = _frames(config, lake, points=False, segments=with_labels).stream(1, shuffle=False).epoch_samples
    return spare_places(config.batch, config.loop.steps, labelled)


def _heard(config: Train) -> dict[str, str]:
    """Return name -> folder of the teachers who are asked."""
    if config.listen == "none":
        return {}
    return {name: absolute(url) for name, url in parse_teachers(config.teachers).items() if name not in config.deaf_to}


def _located(config: Train) -> Train:
    """Return the same with absolute places: a worker of Ray may run in another folder."""
    return replace(
        config,
        lake=absolute(config.lake),
        out=absolute(config.out),
        remember=None if config.remember is None else absolute(config.remember),
    )


def main() -> None:
    """Run from the command line; bad input ends in one line and status 2, a signal in one and 128 + its number."""
    config = tyro.cli(Train, description=__doc__)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    try:
        with stoppable("train"):
            status = run(config, Console())
    except (LakeError, TeacherError, TrainingError, StudentError, OSError) as error:
        Console(stderr=True).print(f"train: {error}", soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
    sys.exit(status)


if __name__ == "__main__":
    main()
