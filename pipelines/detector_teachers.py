"""Detector teachers on disk: with a card, as they are trained or imported, a run of train.py, an exported student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rich.console import Console
from torch import nn

from datalake.commit import LakeError
from datalake.lake import Lake, open_lake
from pipelines.data import labelled_segments
from pipelines.trainings import trainings_of
from student.checkpoint import read_student
from student.config import StudentConfig, StudentError
from student.distillation.detector_teacher import DetectorTeacher, PyramidShape
from student.distillation.torchvision_detector import ARCHITECTURE, TorchvisionDetector
from student.export import WEIGHTS_FILE, read_exported
from teachers.card import CARD_FILE, TeacherCard, TeacherError, read_card, read_weights
from training.checkpoint import CHECKPOINT_FILE, Checkpoint
from training.errors import TrainingError
from training.fingerprint import Plain
from training.run_dir import RunDir


class OpenedDetector(NamedTuple):
    """A detector from a folder, on the CPU.

    checkpoint: of the run whose folder it is; card: of a teacher that was trained or imported as one
    """

    teacher: DetectorTeacher
    checkpoint: Checkpoint | None = None
    card: TeacherCard | None = None


def read_detector(name: str, url: str) -> OpenedDetector:
    """Return the detector in a folder.

    Raises TeacherError where the folder has no detector of ours, or a damaged one.
    """
    folder = RunDir(url)
    try:
        if folder.exists(CARD_FILE):
            card = read_card(url)
            if card.architecture == ARCHITECTURE:
                network, where = str(card.options.get("network")), folder.place(CARD_FILE)
                detector = TorchvisionDetector.load(network, read_weights(url, card), where)
                return OpenedDetector(DetectorTeacher(detector, card.weights_sha256), card=card)
            teacher = DetectorTeacher(*read_exported(url))
            if teacher.weights_sha256 != card.weights_sha256:
                raise TeacherError(
                    f"{folder.place(WEIGHTS_FILE)}: the weights are not those that {CARD_FILE} is of; copy the whole"
                    " folder again"
                )
            return OpenedDetector(teacher, card=card)
        if not folder.exists(CHECKPOINT_FILE):
            return OpenedDetector(DetectorTeacher(*read_exported(url)))
        student, checkpoint = read_student(url)
    except (StudentError, TrainingError, TeacherError) as error:
        raise TeacherError(f"teacher {name}: {error}") from error
    return OpenedDetector(DetectorTeacher(student), checkpoint)


def prepare_detectors(
    urls: Mapping[str, str],
    student: StudentConfig,
    image_size: tuple[int, int],
    lake: Lake,
    hidden_segments: frozenset[str],
    console: Console,
) -> dict[str, DetectorTeacher]:
    """Return the detectors in these folders by the teachers' names, and say what each of them learned from.

    image_size: width and height of the student's images in pixels
    hidden_segments: of the lake, whose labels the student must not know: it sees them without, or is evaluated on them

    Raises TeacherError or StudentError for a detector that cannot teach this student, or would pass on such labels.
    """
    detectors = {}
    for name, url in urls.items():
        detectors[name], checkpoint, card = read_detector(name, url)
        config = detectors[name].config
        _check_fit(name, config, student, image_size)
        if card is not None:
            learned = _check_card(name, card, hidden_segments)
        elif checkpoint is None:
            learned = "exported, so nobody can tell whose labels it has seen"
        else:
            first, *before = (
                _check_labels(name, data, lake, hidden_segments) for data in trainings_of(checkpoint.fingerprint)
            )
            learned = "; before that ".join(
                (f"{checkpoint.step:,} steps{first}", *(f"training{one}" for one in before))
            )
            if teachers := checkpoint.fingerprint.get("teachers"):
                learned += f"; whose labels its own teachers have seen is not known: {teachers}"
            if (seen := checkpoint.fingerprint.get("image_size")) not in (None, str(image_size)):
                learned += f"; it learned from images of {seen} pixels, not {image_size}"
        console.print(f"teacher {name}: a detector of width {config.width}, {learned}", soft_wrap=True, highlight=False)
    return detectors


def _check_fit(name: str, detector: PyramidShape, student: StudentConfig, image_size: tuple[int, int]) -> None:
    """Raise where levels cannot be compared; that the classes are the student's, its weights have shown."""
    if hasattr(nn.ModuleDict, name):
        raise TeacherError(f"teacher {name}: that is a name that torch needs itself; call the teacher otherwise")
    if (detector.stride, detector.levels) != (student.stride, student.levels):
        raise TeacherError(
            f"teacher {name}: a detector of {detector.levels} levels from stride {detector.stride} on cannot teach a"
            f" student of {student.levels} from stride {student.stride} on; train it with the student's"
            " --student.trunk (train_teachers.py: --detector.student.trunk)"
        )
    width, height = image_size
    try:
        detector.grid(height, width)
    except StudentError as error:
        raise StudentError(f"teacher {name}: {error}") from error


def _check_labels(name: str, known: Mapping[str, Plain], lake: Lake, hidden_segments: frozenset[str]) -> str:
    """Return what the detector learned from in a training of which so much is known.

    Raises TeacherError where it learned from labels that the student does not have: it would pass them on.
    """
    url, snapshot, split = known.get("lake"), known.get("snapshot"), known.get("split")
    # Version 0.1 had an option for the seed.
    fraction, seed = known.get("labelled_fraction"), known.get("label_seed", 0)
    condition = known.get("where")
    if not (
        isinstance(url, str)
        and isinstance(snapshot, int)
        and isinstance(split, str)
        and isinstance(fraction, float | int)
        and isinstance(seed, int)
    ):
        return "; its checkpoint does not say whose labels it has seen, so nobody can tell"
    where = f"split {split} of {url}"
    try:
        whole = open_lake(url, snapshot)
        seen = _labelled(whole.where(None if condition is None else str(condition), split), split, fraction, seed)
    except LakeError as error:
        # Runs are carried to other machines. What can be compared still is, and the reader is told.
        if split not in lake.splits:
            return f"; whose labels it has seen is not known: {error}"
        seen = _labelled(lake, split, fraction, seed)
        where = f"split {split}, taken for this lake's, since its own cannot be read ({error})"
    _check_leakage(name, seen, hidden_segments)
    return f" with the labels of {len(seen):,} segments of {where}"


def _check_card(name: str, card: TeacherCard, hidden_segments: frozenset[str]) -> str:
    """Return what a detector with a card learned from; raises TeacherError as `_check_labels` does."""
    if card.data is None:
        return "imported, so nobody can tell whose labels it has seen"
    _check_leakage(name, card.data.all_segments, hidden_segments)
    return (
        f"AP50 {card.metrics['AP50']:.3f} on frames that it was not trained on, {card.metrics['training/steps']:,.0f}"
        f" steps with the labels of {len(card.data.all_segments):,} segments of {', '.join(card.data.segments)} of"
        f" {card.data.lake}"
    )


def _check_leakage(name: str, seen: frozenset[str], hidden_segments: frozenset[str]) -> None:
    if shared := sorted(seen & hidden_segments):
        raise TeacherError(
            f"teacher {name} has learned from the labels of {len(shared)} segments that the student must not know, e.g."
            f" {shared[0]}: it would pass them on; train it with the student's --labelled-fraction, or on another split"
        )


def _labelled(lake: Lake, split: str, fraction: float, seed: int) -> frozenset[str]:
    return labelled_segments(lake, split, fraction, seed)[0]
