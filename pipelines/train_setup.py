"""What a training needs to know of lake and teachers before the student's first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from rich.console import Console
from torch import Tensor

from datalake.lake import Lake
from datalake.sample import Sample
from pipelines.data import check_no_leakage, read_boxes
from pipelines.detector_teachers import prepare_detectors
from pipelines.device import device_of
from pipelines.fine_tuning import FineTuned, check_branches, check_fine_tuned, read_fine_tuned
from pipelines.image_size import find_image_size
from pipelines.train_config import TrainConfig
from pipelines.trainings import FINE_TUNE
from pipelines.trunk_weights import check_pretrained, prepare_trunk
from student.anchors import FINDABLE_PX, AnchorReport, anchor_recall, fit_anchors
from student.config import AnchorShapes, BranchSpec, StudentConfig, StudentError
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.imitation import balanced_weights
from teachers.card import TeacherError
from teachers.load import needs_points
from teachers.loading import class_shares, evaluate_teachers, open_pool, read_cards
from training.distributed import Distributed
from training.fingerprint import Plain

# torchvision's own, which the paper took: made for images of 1333 pixels.
_PAPER_ANCHORS = AnchorShapes(sizes=((32,), (64,), (128,), (256,)), ratios=(0.5, 1.0, 2.0))
_LEVELS = 4
# Images on which each teacher is checked before the training.
_CHECKED_SAMPLES = 48
_TOLD = ("accuracy", "mIoU")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """All that a worker needs to know, computed once before the first step.

    init_sha256: of the pre-trained trunk that the student starts from
    fine_tune_sha256: of the student that is trained further
    teachers: name -> folder of those that answer with maps and are asked
    detectors: the detectors who are asked, by their names
    methods: names of the distillation methods that are on
    class_weights: of each teacher of classes
    labelled, unlabelled: images per step over all workers; segments of either kind
    """

    config: TrainConfig
    snapshot: int
    student: StudentConfig
    init_sha256: str | None
    fine_tune_sha256: Plain
    teachers: dict[str, str]
    detectors: dict[str, DetectorTeacher]
    methods: tuple[str, ...]
    class_weights: dict[str, Tensor]
    labelled: int
    unlabelled: int
    labelled_segments: frozenset[str]
    unlabelled_segments: frozenset[str]


def prepare_training(
    config: TrainConfig, console: Console, progress: Callable[[str, int, int, str], None]
) -> TrainPlan:
    """Check lake and teachers, print what was found, and return what the workers need.

    Raises LakeError, TeacherError, StudentError or TrainingError where the training would be in vain.
    """
    config = config.located
    fine_tuned = _fine_tuned(config, console)
    student = prepare_trunk(config.student, config.out, console) if fine_tuned is None else fine_tuned.config
    init_sha256 = None if config.init is None else check_pretrained(config.init, student, config.out, console)
    lake = config.open_lake(config.snapshot)
    asked = config.image_size
    if asked == "auto" and fine_tuned is not None and fine_tuned.image_size is not None:
        asked = fine_tuned.image_size
    size = find_image_size(asked, lake, config.cameras, console, run=config.out)
    config = replace(config, image_size=size)
    cards = read_cards(config.map_teachers)
    check_no_leakage(cards, lake, [config.split])
    named = {**cards, **config.detectors}
    if unknown := sorted(set(config.mute) - named.keys()):
        raise TeacherError(f"--mute {unknown[0]}: expected one of the teachers {', '.join(named) or '(there is none)'}")
    if config.targets != "real" and not (config.active_teachers or config.active_detectors):
        raise StudentError(f"--targets {config.targets}: expected teachers whose targets are replaced")
    with_labels, without = config.segments(lake)
    unlabelled = config.unlabelled_in_batch(lake)
    _check_batch(config, lake, unlabelled, with_labels, without)

    boxes = read_boxes(config.frames(lake, points=False, segments=with_labels))
    if config.fine_tune is None:
        stride = config.student.stride
        shapes = fit_anchors(boxes, levels=_LEVELS, stride=stride) if config.anchors == "fitted" else _PAPER_ANCHORS
        branches = tuple(BranchSpec.of(name, card) for name, card in cards.items())
        student = replace(student, branches=branches, anchors=shapes)
    else:
        check_branches(config.fine_tune, student, cards)
    width, height = size
    grid = student.grid(height, width)
    _check_teachers_in(config, lake, grid)
    detectors = prepare_detectors(config.active_detectors, student, size, lake, without, console)
    _check_depths(config, detectors)
    _check_anchors(config, anchor_recall(student, boxes, (height, width)), console)
    console.print(
        f"{len(with_labels):,} segments with labels, {len(without):,} without;"
        f" {config.batch - unlabelled} and {unlabelled} images of a batch",
        highlight=False,
    )
    return TrainPlan(
        config=config,
        snapshot=lake.snapshot,
        student=student,
        init_sha256=init_sha256,
        fine_tune_sha256=None if fine_tuned is None else fine_tuned.fingerprint[FINE_TUNE],
        teachers=config.active_teachers,
        detectors=detectors,
        methods=config.methods,
        class_weights=_check_teachers(config, lake, grid, console, progress) if config.active_teachers else {},
        labelled=config.batch - unlabelled,
        unlabelled=unlabelled,
        labelled_segments=with_labels,
        unlabelled_segments=without,
    )


def _fine_tuned(config: TrainConfig, console: Console) -> FineTuned | None:
    """Return the student that is to be trained further; raises StudentError where it cannot be."""
    if config.fine_tune is None:
        return None
    if config.init is not None or config.anchors != "fitted":
        option = "--init" if config.init is not None else "--anchors"
        raise StudentError(
            f"--fine-tune {config.fine_tune}: trunk and anchors are those of this run; leave {option} out"
        )
    found = read_fine_tuned(config.fine_tune, config.out)
    check_fine_tuned(config.fine_tune, found, config.student, console)
    return found


def _check_batch(
    config: TrainConfig, lake: Lake, unlabelled: int, with_labels: frozenset[str], without: frozenset[str]
) -> None:
    """Raise now for what a worker would find out in its first step."""
    if not 0 <= unlabelled < config.batch:
        raise StudentError(f"--unlabelled {unlabelled}: expected fewer than the {config.batch} images of a batch")
    for share, what, segments in (
        (config.batch - unlabelled, "labelled images (--batch less --unlabelled)", with_labels),
        (unlabelled, "images without labels (--unlabelled)", without),
    ):
        Distributed(size=max(1, config.workers)).share(share, what)
        if share:
            config.frames(lake, points=False, segments=segments).stream(share, shuffle=True)
    if config.targets == "shuffled" and config.batch // max(1, config.workers) // config.loop.accumulate < 2:
        raise StudentError("--targets shuffled: two images at once are needed, to give one the targets of the other")


def _check_depths(config: TrainConfig, detectors: Mapping[str, DetectorTeacher]) -> None:
    """Raise where a detector without a depth head is to teach depths."""
    ignorant = sorted(name for name, detector in detectors.items() if not detector.knows_depths)
    if "kd" in config.methods and config.kd.depth and ignorant:
        raise TeacherError(
            f"--kd.depth: teacher {ignorant[0]} is torchvision's and knows no depths; leave --kd.depth out"
        )


def _check_teachers_in(config: TrainConfig, lake: Lake, grid: tuple[int, int]) -> None:
    """Raise where the teachers cannot be where the configuration has them."""
    if config.teachers_in == "actors" and not config.workers:
        raise TeacherError("--teachers-in actors: expected --workers 1 or more, which ask them; alone, leave it out")
    if config.teacher_gpus and config.teachers_in != "actors":
        raise TeacherError("--teacher-gpus: only with --teachers-in actors; in its process a teacher shares the GPU")
    height, width = grid
    tables = config.cached_targets(lake)
    for name, url in config.active_teachers.items():
        cached = tables.open(name, url)
        if cached and (cached.grid, cached.image_size) != (grid, config.size):
            raise TeacherError(
                f"--cached {name}: the lake has its predictions for images of {_by(cached.image_size)} pixels on a grid"
                f" of {_by(cached.grid)} cells, not {_by(config.size)} and {_by(grid)}; run cache_targets.py with"
                f" --grid {height} {width} --image-size {_by(config.size, ' ')} and another --name"
            )


def _by(sides: tuple[int, int], between: str = " x ") -> str:
    return between.join(map(str, sides))


def _check_anchors(config: TrainConfig, report: AnchorReport, console: Console) -> None:
    """Print the report; raise StudentError where most of the boxes that can be found would not be."""
    console.print(str(report), soft_wrap=True, highlight=False)
    found = report.recall[0.5] if report.findable or not report.boxes else 0.0
    if found < config.min_anchor_recall:
        larger = f"a larger --image-size than {_by(config.size, ' ')}"
        raise StudentError(
            f"anchors overlap only {found:.0%} of the {report.findable:,} boxes of at least {FINDABLE_PX:g} px by IoU"
            f" 0.5, --min-anchor-recall asks for {config.min_anchor_recall:.0%}: most objects would never be proposed;"
            f" use {'--anchors fitted' if config.anchors == 'paper' else larger}, or lower the limit"
        )


def _check_teachers(
    config: TrainConfig,
    lake: Lake,
    grid: tuple[int, int],
    console: Console,
    progress: Callable[[str, int, int, str], None],
) -> dict[str, Tensor]:
    """Check each teacher on a few images and print its metrics; return the class weights of those of classes."""
    device = device_of(config.device)
    cards = read_cards(config.active_teachers)
    frames = config.frames(lake, points=needs_points(cards.values()))
    stream = frames.stream(config.batch, shuffle=True, panoptic=True)
    wanted = min(_CHECKED_SAMPLES, stream.epoch_samples)
    batches: list[list[Sample]] = []
    for batch in stream.loader():
        batches.append(batch)
        progress("check teachers", min(len(batches) * config.batch, wanted), wanted, "images")
        if len(batches) * config.batch >= wanted:
            break
    for name, seen in evaluate_teachers(config.active_teachers, batches, grid, device).items():
        metrics = ", ".join(f"{figure} {seen.metrics[figure]:.2f}" for figure in _TOLD if figure in seen.metrics)
        answers = f"predicts {seen.valid_share:.0%} of the cells"
        data = cards[name].data
        if data and data.image_size not in (None, config.size) and not needs_points([cards[name]]):
            answers += f"; it learned from images of {_by(data.image_size)} pixels, not {_by(config.size)}"
        console.print(
            f"teacher {name}: {answers}; {metrics or 'no labels to compare with'}",
            soft_wrap=True,
            highlight=False,
        )
    of_classes = {name: url for name, url in config.active_teachers.items() if cards[name].kind == "classification"}
    shares = class_shares(open_pool(of_classes, grid, device, config.cached_targets(lake)), batches)
    return {name: balanced_weights(share) for name, share in shares.items()}
