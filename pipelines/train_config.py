"""What a student's training is asked for, and what follows from that alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import tyro

from datalake.cache import RangeCache
from datalake.lake import Lake, open_lake
from pipelines.data import Frames, labelled_segments, unlabelled_per_batch
from pipelines.paths import absolute
from student.augmentation import Augmentation
from student.config import StudentConfig, StudentError
from student.distillation.controls import Targets
from student.distillation.imitation import ImitationConfig
from student.distillation.objective import LossWeights
from teachers.loading import CachedTargets, parse_cached, parse_teachers, read_cards
from training.fingerprint import Plain, flatten
from training.loop import LoopConfig
from training.optimizer import OptimizerConfig
from training.precision import uses_bfloat16

Method = Literal["imitation", "none"]
Anchors = Literal["fitted", "paper"]
# The students that `--preset` names.
PRESETS: dict[str, Callable[[], StudentConfig]] = {"classroom": StudentConfig, "paper": StudentConfig.paper}

# What does not decide about the result: where things are kept and who does the work.
_IRRELEVANT = {
    "out",
    "cache",
    "cache_bytes",
    "cached",
    "data_workers",
    "workers",
    "device",
    "max_failures",
    "teachers_in",
    "teacher_gpus",
    "loop.checkpoint_every",
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a Faster R-CNN with a depth head that listens to frozen teachers."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # The checkpoint and the logs go here: a local folder or any fsspec URL.
    out: str
    # Teachers as NAME=FOLDER, or none alone.
    teachers: tuple[str, ...] = ("none",)
    # Distillation methods by which the student learns from its teachers, or none alone: their branches stay, but no
    # teacher is asked.
    distill: tuple[Method, ...] = ("imitation",)
    # What the methods get. Controls: `shuffled` gives each image the targets of another, `random` drawn ones.
    targets: Targets = "real"
    # Teachers who are not asked, though the student has a branch for them.
    mute: tuple[str, ...] = ()
    # The student's architecture; `--preset paper` sets these defaults to those of the paper's student.
    student: StudentConfig = field(default_factory=StudentConfig)
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
    # Width and height that images are scaled to.
    image_size: tuple[int, int] = (384, 256)
    # This share of the segments keeps its labels; on the others the student learns from its teachers alone.
    labelled_fraction: float = 1.0
    # Images per step, over all workers.
    batch: int = 6
    # Of these, images without labels, where there are any and a teacher to learn from. By default up to half, as
    # long as each labelled image is seen twenty times all the same.
    unlabelled: int | None = None
    # Where the teachers look: in the student's own process, or as Ray actors that all workers ask some batches ahead.
    teachers_in: Literal["process", "actors"] = "process"
    # Share of a GPU that each of these actors takes.
    teacher_gpus: float = 0.0
    # Teachers whose answers are looked up in the lake, where `cache_targets.py` has put them: NAME, or NAME=CACHED if
    # they were put there under another name than the teacher's own.
    cached: tuple[str, ...] = ()
    # Local folder in which what is read of a remote lake is kept, for the next epoch and the next run.
    cache: str | None = None
    # At most so many bytes are kept there.
    cache_bytes: int = 32 << 30
    # Processes of each worker that read samples ahead, for labelled and for unlabelled images each; 0: threads alone.
    data_workers: int = 0
    # Workers of Ray Train; 0: this process alone.
    workers: int = 0
    # How often lost workers are started again.
    max_failures: int = 3
    # Where this process trains: cpu, cuda, cuda:1 …; by default on the GPU if there is one. Workers of Ray Train take
    # a GPU each where the cluster has them, unless this is cpu.
    device: str = "auto"
    # How much each loss of detection counts.
    weights: LossWeights = field(default_factory=LossWeights)
    # How much imitation counts.
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    # What happens to the images.
    augmentation: Augmentation = field(default_factory=Augmentation)
    # How fast.
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # How long, and in which number format.
    loop: LoopConfig = field(default_factory=LoopConfig)

    @property
    def located(self) -> TrainConfig:
        """The same with absolute places: a worker of Ray may run in another folder."""
        return replace(
            self,
            lake=absolute(self.lake),
            out=absolute(self.out),
            teachers=tuple(f"{name}={absolute(url)}" for name, url in parse_teachers(self.teachers).items())
            or ("none",),
            cache=None if self.cache is None else absolute(self.cache),
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """The distillation methods that are on; imitation is where there is a teacher.

        Raises StudentError where `none` stands beside others, or a method is named twice.
        """
        if ("none" in self.distill and len(self.distill) > 1) or len(set(self.distill)) < len(self.distill):
            raise StudentError(f"--distill {' '.join(self.distill)}: expected different methods, or none alone")
        return () if "none" in self.distill or not parse_teachers(self.teachers) else self.distill

    @property
    def active_teachers(self) -> dict[str, str]:
        """Name -> folder of the teachers who are asked."""
        if "imitation" not in self.methods:
            return {}
        named = parse_teachers(self.teachers)
        return {name: absolute(url) for name, url in named.items() if name not in self.mute}

    @property
    def tables(self) -> dict[str, str | None]:
        """Teachers whose answers are looked up, and the names that these have in the lake; None: the teacher's own."""
        return parse_cached(self.cached, parse_teachers(self.teachers))

    def cached_targets(self, lake: Lake) -> CachedTargets:
        """Return the teachers whose answers are looked up in the split to train on."""
        return CachedTargets(lake, self.split, self.tables)

    def open_lake(self, snapshot: int | None) -> Lake:
        """Return the lake at a snapshot, read through the local cache if there is to be one."""
        cache = None if self.cache is None else RangeCache(absolute(self.cache), self.cache_bytes)
        return open_lake(absolute(self.lake), snapshot, cache)

    def frames(self, lake: Lake, *, points: bool, segments: frozenset[str] | None = None, threads: int = 1) -> Frames:
        """Return the frames of these segments, of all by default, as the student sees them."""
        return Frames(
            lake=lake,
            split=self.split,
            cameras=self.cameras,
            image_size=self.image_size,
            points=points,
            seed=self.seed,
            segments=segments,
            threads=threads,
        )

    def segments(self, lake: Lake) -> tuple[frozenset[str], frozenset[str]]:
        """Return the segments that keep their labels, and the others."""
        return labelled_segments(lake, self.split, self.labelled_fraction)

    def unlabelled_in_batch(self, lake: Lake) -> int:
        """Return how many images of a batch go without labels."""
        with_labels, without = self.segments(lake)
        if not self.active_teachers or not without:
            return 0
        if self.unlabelled is not None:
            return self.unlabelled
        labelled = self.frames(lake, points=False, segments=with_labels).stream(1, shuffle=False).epoch_samples
        return unlabelled_per_batch(self.batch, self.loop.steps, labelled, max(1, self.workers))

    def identity(self, lake: Lake) -> dict[str, Plain]:
        """Return what decides about the result: settings, branches, teachers' weights and the lake's snapshot."""
        kept = {name: value for name, value in flatten(self.located).items() if name not in _IRRELEVANT}
        named = read_cards(parse_teachers(self.located.teachers))
        heard = {f"teacher.{name}": named[name].weights_sha256 for name in self.active_teachers}
        return {
            **kept,
            **heard,
            "lake": lake.store.url,
            "snapshot": lake.snapshot,
            "teachers": ", ".join(heard),
            "branches": ", ".join(f"{name} {card.kind} {card.channels}" for name, card in named.items()),
            "unlabelled": self.unlabelled_in_batch(lake),
        }


def read_preset(arguments: Sequence[str], flag: str = "--preset") -> tuple[list[str], TrainConfig]:
    """Take `--preset NAME` out of a command line; return the rest, and a training with that student's defaults.

    Raises StudentError for a preset that there is not.
    """
    rest, name = [], "classroom"
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option == flag:
            name = value if equals else next(words, "")
        else:
            rest.append(word)
    if name not in PRESETS:
        raise StudentError(f"{flag} {name}: expected one of {', '.join(PRESETS)}")
    return rest, TrainConfig(lake=tyro.MISSING, out=tyro.MISSING, student=PRESETS[name]())


def run_fingerprint(config: TrainConfig, device: torch.device) -> dict[str, Plain]:
    """Return what decides about a run's result, as its checkpoint has it."""
    identity = config.identity(config.open_lake(config.snapshot))
    return {**identity, "bfloat16": uses_bfloat16(config.loop.precision, device)}
