"""The configuration of a student's training, and what follows from that alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import tyro

from datalake.cache import RangeCache
from datalake.lake import Lake, open_lake
from pipelines.data import Frames, labelled_segments, unlabelled_per_batch
from pipelines.detector_teachers import read_detector
from pipelines.fine_tuning import read_fine_tuned
from pipelines.image_size import ImageSize, fixed
from pipelines.paths import absolute
from pipelines.trunk_weights import pretrained_sha256, weights_sha256
from student.augmentation import Augmentation
from student.config import StudentConfig, StudentError
from student.distillation.controls import Targets
from student.distillation.crosskd import CrossKD, CrossKDConfig
from student.distillation.fgfi import FGFI, FGFIConfig
from student.distillation.fitnet import FitNet, FitNetConfig
from student.distillation.imitation import Imitation, ImitationConfig
from student.distillation.kd import KD, KDConfig
from student.distillation.lgd import LGD, LGDConfig
from student.distillation.method import DistillationMethod
from student.distillation.objective import LossWeights
from student.distillation.pkd import PKD, PKDConfig
from student.distillation.reviewkd import ReviewKD, ReviewKDConfig
from student.trunk import resolved
from teachers.loading import CachedTargets, is_detector, parse_cached, parse_teachers, read_cards
from training.fingerprint import Plain, flatten
from training.loop import LoopConfig
from training.optimizer import OptimizerConfig
from training.precision import uses_bfloat16

if TYPE_CHECKING:
    from pipelines.train_setup import TrainPlan

Method = Literal["imitation", "fitnet", "kd", "pkd", "crosskd", "fgfi", "reviewkd", "lgd", "none"]
Anchors = Literal["fitted", "paper"]
# What `--preset` sets otherwise than the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "classroom": {},
    "paper": {"student": StudentConfig.paper()},
    "resnet50": {
        "student": StudentConfig.resnet50(),
        "image_size": (960, 640),
        # A tenth of it for the trunk's given weights: 1e-4, at which AdamW commonly trains them further.
        "optimizer": OptimizerConfig(learning_rate=1e-3),
    },
}

# What does not decide about the result: where things are kept and which processes compute.
_IRRELEVANT = {
    "out",
    # The checksum of its trunk decides.
    "init",
    # That of its student decides.
    "fine_tune",
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
    "loop.keep",
    "loop.diagnose_every",
    # The training finds these out; the objective's fingerprint has them, and the checksum of the trunk's weights.
    "student.trunk_weights",
    "student.trunk_weights_sha256",
    "student.branches",
    "student.anchors.sizes",
    "student.anchors.ratios",
    "student.anchors.half_cells",
}


class MethodEntry(NamedTuple):
    """A distillation method of the command line.

    learns_from: what it needs: teachers that answer with maps, or detectors, or the labels alone
    build: makes it of what was found out before the training
    """

    learns_from: Literal["maps", "detectors", "labels"]
    build: Callable[[TrainPlan], DistillationMethod]


# The distillation methods by the names that --distill takes; their settings are fields of TrainConfig of that name.
DISTILLATION_METHODS: dict[str, MethodEntry] = {
    "imitation": MethodEntry("maps", lambda plan: Imitation(plan.config.imitation, plan.class_weights)),
    "fitnet": MethodEntry("detectors", lambda plan: FitNet(plan.config.fitnet, plan.student, plan.detectors)),
    "kd": MethodEntry("detectors", lambda plan: KD(plan.config.kd)),
    "pkd": MethodEntry("detectors", lambda plan: PKD(plan.config.pkd, plan.student, plan.detectors)),
    "crosskd": MethodEntry("detectors", lambda plan: CrossKD(plan.config.crosskd, plan.student, plan.detectors)),
    "fgfi": MethodEntry("detectors", lambda plan: FGFI(plan.config.fgfi, plan.student, plan.detectors)),
    "reviewkd": MethodEntry("detectors", lambda plan: ReviewKD(plan.config.reviewkd, plan.student, plan.detectors)),
    "lgd": MethodEntry("labels", lambda plan: LGD(plan.config.lgd, plan.student, plan.config.weights)),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a Faster R-CNN with a depth head by distillation from frozen teachers."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # The checkpoint and the logs go here: a local folder or any fsspec URL.
    out: str
    # Teachers as NAME=FOLDER, or none alone. For each that answers with maps (spvcnn, mask_rcnn) the student has a
    # branch. A detector teacher, which has none, is what `train_teachers.py --teacher detector` and `import_teacher.py
    # detector` write, the folder of a run, or of an exported student.
    teachers: tuple[str, ...] = ("none",)
    # Distillation methods by which the student learns from its teachers; by default imitation where there are teachers
    # that answer with maps. Or none alone: the branches stay, but no teacher is asked.
    distill: tuple[Method, ...] = ("imitation",)
    # The targets that the methods get. Controls: `shuffled` gives each image the targets of another, `random` draws
    # them.
    targets: Targets = "real"
    # Teachers who are not asked; a branch for them stays.
    mute: tuple[str, ...] = ()
    # The student's architecture; `--preset paper` sets these defaults to those of the paper's student, `--preset
    # resnet50` to those of one for images of 960 x 640 pixels.
    student: StudentConfig = field(default_factory=StudentConfig)
    # The folder of a run of pretrain.py from whose trunk the student's starts, at the same rate as all else.
    init: str | None = None
    # The folder of a run of train.py whose student is trained further, all of it, on the frames of this run. Its
    # architecture, anchors, branches and image size stay; a tenth of the learning rate is enough.
    fine_tune: str | None = None
    # Anchors fitted to the labelled boxes, or the paper's.
    anchors: Anchors = "fitted"
    # The training stops before it starts where anchors overlap a smaller share of the boxes by IoU 0.5.
    min_anchor_recall: float = 0.6
    # Seed of weights, order and augmentation.
    seed: int = 0
    # The split to train on. Teachers must not have seen it.
    split: str = "train"
    # Train on these images of the split alone, as in SQL: "time_of_day = 'Night' AND location IN ('location_sf')".
    where: str | None = None
    # The lake's snapshot; the newest by default. A run that continues needs the one that it began with.
    snapshot: int | None = None
    # Cameras whose images are used.
    cameras: tuple[str, ...] = ("FRONT",)
    # Width and height that images are scaled to. `auto`: the smallest of 384 x 256, 576 x 384, 768 x 512 and 960 x 640,
    # in the images' own proportions, at which 80 % of the lake's boxes are at least 8 px large; else the largest.
    image_size: ImageSize = "auto"
    # This share of the segments keeps its labels; on the others the student learns from its teachers alone.
    labelled_fraction: float = 1.0
    # Images per step, over all workers.
    batch: int = 6
    # Of these, images without labels, where there are any and a teacher to learn from. By default up to half, as
    # long as each labelled image is still seen twenty times.
    unlabelled: int | None = None
    # Where the teachers run: in the student's own process, or as Ray actors for all workers, some batches ahead.
    teachers_in: Literal["process", "actors"] = "process"
    # Share of a GPU that each of these actors takes.
    teacher_gpus: float = 0.0
    # Teachers whose predictions are read from the lake, where `cache_targets.py` has stored them: NAME, or NAME=CACHED
    # if they were stored under another name than the teacher's own.
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
    # A trunk of timm's keeps few activations for the backward pass and computes the others twice: slower, for images
    # that would not fit otherwise. Batch norms that are not frozen see each image twice.
    recompute_activations: bool = False
    # Weight of each detection loss.
    weights: LossWeights = field(default_factory=LossWeights)
    # Weights of the imitation losses.
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    # How much FitNet counts.
    fitnet: FitNetConfig = field(default_factory=FitNetConfig)
    # How much knowledge distillation of classes counts.
    kd: KDConfig = field(default_factory=KDConfig)
    # How much PKD counts.
    pkd: PKDConfig = field(default_factory=PKDConfig)
    # How much CrossKD counts.
    crosskd: CrossKDConfig = field(default_factory=CrossKDConfig)
    # How much FGFI counts, and where.
    fgfi: FGFIConfig = field(default_factory=FGFIConfig)
    # How much ReviewKD counts.
    reviewkd: ReviewKDConfig = field(default_factory=ReviewKDConfig)
    # How LGD counts, which needs no teacher.
    lgd: LGDConfig = field(default_factory=LGDConfig)
    # What happens to the images.
    augmentation: Augmentation = field(default_factory=Augmentation)
    # The optimizer and its learning rate.
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # How long, and in which number format.
    loop: LoopConfig = field(default_factory=LoopConfig)

    @property
    def located(self) -> TrainConfig:
        """The same with absolute places: a worker of Ray may run in another folder."""
        weights = self.student.trunk_weights
        return replace(
            self,
            lake=absolute(self.lake),
            out=absolute(self.out),
            init=self.init and absolute(self.init),
            fine_tune=self.fine_tune and absolute(self.fine_tune),
            teachers=tuple(f"{name}={absolute(url)}" for name, url in parse_teachers(self.teachers).items())
            or ("none",),
            cache=None if self.cache is None else absolute(self.cache),
            student=replace(self.student, trunk_weights=weights and absolute(weights)),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images in pixels; `prepare_training` finds them where they are `auto`."""
        return fixed(self.image_size)

    @property
    def methods(self) -> tuple[str, ...]:
        """The distillation methods that are on.

        Raises StudentError where `none` stands beside others, a method is named twice, a method has no teacher to learn
        from, or none of them learns from a detector that is a teacher.
        """
        asked = " ".join(self.distill)
        if ("none" in self.distill and len(self.distill) > 1) or len(set(self.distill)) < len(self.distill):
            raise StudentError(f"--distill {asked}: expected different methods, or none alone")
        if self.distill == ("none",):
            return ()
        maps, detectors = self.map_teachers, self.detectors
        methods: tuple[str, ...] = () if self.distill == TrainConfig.distill and not maps else self.distill
        for name in methods:
            if DISTILLATION_METHODS[name].learns_from == "detectors" and not detectors:
                raise StudentError(f"--distill {name}: expected a detector to learn from, as --teachers NAME=RUN")
            if DISTILLATION_METHODS[name].learns_from == "maps" and not maps:
                raise StudentError(
                    f"--distill {name}: expected a teacher that answers with maps, such as spvcnn; leave {name} out"
                )
        if (heard := detectors.keys() - set(self.mute)) and not _learn_from("detectors", methods):
            learning = ", ".join(_learn_from("detectors", DISTILLATION_METHODS))
            raise StudentError(
                f"teacher {min(heard)} is a detector, from which --distill {asked} learns nothing; name a"
                f" method that does ({learning}), or leave the teacher out"
            )
        return methods

    @property
    def map_teachers(self) -> dict[str, str]:
        """Name -> folder of the teachers that answer with maps, for each of which the student has a branch."""
        named = parse_teachers(self.teachers)
        return {name: absolute(url) for name, url in named.items() if not is_detector(absolute(url))}

    @property
    def detectors(self) -> dict[str, str]:
        """Name -> folder of the detector teachers."""
        named = parse_teachers(self.teachers)
        return {name: absolute(url) for name, url in named.items() if is_detector(absolute(url))}

    @property
    def active_teachers(self) -> dict[str, str]:
        """Name -> folder of those of them who are asked."""
        if not _learn_from("maps", self.methods):
            return {}
        return {name: url for name, url in self.map_teachers.items() if name not in self.mute}

    @property
    def active_detectors(self) -> dict[str, str]:
        """Name -> folder of the detector teachers who are asked."""
        if not _learn_from("detectors", self.methods):
            return {}
        return {name: url for name, url in self.detectors.items() if name not in self.mute}

    @property
    def tables(self) -> dict[str, str | None]:
        """Teachers whose answers are looked up, and the names that these have in the lake; None: the teacher's own."""
        return parse_cached(self.cached, parse_teachers(self.teachers))

    def cached_targets(self, lake: Lake) -> CachedTargets:
        """Return the teachers whose answers are looked up in the split to train on."""
        return CachedTargets(lake, self.split, self.tables)

    def open_lake(self, snapshot: int | None) -> Lake:
        """Return the lake at a snapshot, with the images to train on, read through the local cache if there is one."""
        cache = None if self.cache is None else RangeCache(absolute(self.cache), self.cache_bytes)
        return open_lake(absolute(self.lake), snapshot, cache).where(self.where, self.split)

    def frames(self, lake: Lake, *, points: bool, segments: frozenset[str] | None = None, threads: int = 1) -> Frames:
        """Return the frames of these segments, of all by default, as the student sees them."""
        return Frames(
            lake=lake,
            split=self.split,
            cameras=self.cameras,
            image_size=self.size,
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
        if not (self.active_teachers or self.active_detectors) or not without:
            return 0
        if self.unlabelled is not None:
            return self.unlabelled
        labelled = self.frames(lake, points=False, segments=with_labels).stream(1, shuffle=False).epoch_samples
        return unlabelled_per_batch(self.batch, self.loop.steps, labelled, max(1, self.workers))

    def identity(self, lake: Lake) -> dict[str, Plain]:
        """Return what decides about the result: settings, branches, teachers' weights and the lake's snapshot."""
        # Settings of methods that are off decide nothing; a run outlives the coming of a further method.
        ignored = _IRRELEVANT | (DISTILLATION_METHODS.keys() - set(self.methods))
        settings = flatten(replace(self.located, student=resolved(self.student))).items()
        kept = {name: value for name, value in settings if not {name, name.partition(".")[0]} & ignored}
        named = read_cards(self.map_teachers)
        heard = {f"teacher.{name}": named[name].weights_sha256 for name in self.active_teachers}
        for name, url in self.active_detectors.items():
            heard[f"teacher.{name}"] = read_detector(name, url).teacher.weights_sha256
        place = self.located
        return {
            **kept,
            **heard,
            **({} if place.fine_tune is None else read_fine_tuned(place.fine_tune, place.out).fingerprint),
            "init": pretrained_sha256(self.located.init, self.located.out),
            "lake": lake.store.url,
            "snapshot": lake.snapshot,
            "teachers": ", ".join(heard),
            "branches": ", ".join(f"{name} {card.kind} {card.channels}" for name, card in named.items()),
            "unlabelled": self.unlabelled_in_batch(lake),
        }


def _learn_from(teachers: Literal["maps", "detectors"], methods: Iterable[str]) -> list[str]:
    """Return those of the methods that learn from such teachers."""
    return [name for name in methods if DISTILLATION_METHODS[name].learns_from == teachers]


def read_preset(arguments: Sequence[str], flag: str = "--preset") -> tuple[list[str], TrainConfig]:
    """Take `--preset NAME` out of a command line; return the rest, and a training with that preset's defaults.

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
    return rest, TrainConfig(lake=tyro.MISSING, out=tyro.MISSING, **PRESETS[name])


def run_fingerprint(config: TrainConfig, device: torch.device) -> dict[str, Plain]:
    """Return what decides about a run's result, as its checkpoint has it."""
    identity = config.identity(config.open_lake(config.snapshot))
    located = config.located
    return {
        **identity,
        "student.trunk_weights_sha256": weights_sha256(located.student.trunk_weights, located.out),
        "bfloat16": uses_bfloat16(config.loop.precision, device),
    }
