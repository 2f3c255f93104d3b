"""From the command line's teachers to a classroom that is fit to teach."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from datalake.lake import Lake
from datalake.sample import Sample
from datalake.waymo.frame import CAMERAS
from pipelines.data import Frames
from pipelines.detector_teachers import is_detector
from teachers import lidar
from teachers.cached import CachedTeacher
from teachers.card import TeacherCard, TeacherError, read_card
from teachers.load import load_teacher
from teachers.pool import LocalPool
from teachers.remembered import RememberedTeacher, remembered_count, remembered_folder
from teachers.sanity import SanityReport, check_teacher
from teachers.target import Target
from teachers.teacher import Teacher

# Images that a teacher looks at together when it answers ahead.
_AT_ONCE = 6


def parse_teachers(arguments: Sequence[str]) -> dict[str, str]:
    """Return name -> URL for arguments like `spvcnn=/teachers/spvcnn`, or nothing for `none`.

    Raises TeacherError where one is neither.
    """
    if tuple(arguments) == ("none",):
        return {}
    named = {}
    for argument in arguments:
        name, equals, url = argument.partition("=")
        if not equals or not name.isidentifier() or not url:
            raise TeacherError(f"--teachers {argument}: expected NAME=FOLDER, or none alone")
        if name in named:
            raise TeacherError(f"--teachers {argument}: {name} is given twice")
        named[name] = url
    return named


def read_cards(teachers: dict[str, str]) -> dict[str, TeacherCard]:
    """Return the teachers' cards by the names that the student calls them.

    Raises TeacherError for a detector, which has none.
    """
    for name, url in teachers.items():
        if is_detector(url):
            raise TeacherError(
                f"{name}={url}: a detector, which no branch imitates; only train.py asks it, leave it out"
            )
    return {name: read_card(url) for name, url in teachers.items()}


def needs_points(cards: Iterable[TeacherCard]) -> bool:
    """Return whether one of the teachers needs the lidar's points."""
    return any(card.architecture == lidar.ARCHITECTURE for card in cards)


class NamedTeacher:
    """A teacher under the name that the student calls it."""

    def __init__(self, name: str, teacher: Teacher) -> None:
        self.name, self._teacher = name, teacher

    @property
    def card(self) -> TeacherCard:
        """The teacher's own card, renamed."""
        return replace(self._teacher.card, name=self.name)

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return the teacher's answer."""
        return self._teacher.predict(samples, height, width)


def open_teacher(name: str, url: str, device: torch.device | str, remember: Path | None) -> Teacher:
    """Return the teacher in a folder under the name that the student calls it; see `open_classroom`."""
    teacher: Teacher = load_teacher(url, device)
    return NamedTeacher(name, teacher if remember is None else RememberedTeacher(teacher, remember))


def open_cached(url: str, cached_as: str | None, lake: Lake, split: str) -> CachedTeacher:
    """Return what is kept in the lake, as `cached_as` or as its own name, of the answers of the teacher in a folder.

    Raises LakeError where a segment is missing or was cached with other weights, TeacherError where it is another
    teacher's.
    """
    return CachedTeacher.open(lake, split, read_card(url), cached_as)


def open_pool(
    teachers: dict[str, str], grid: tuple[int, int], device: torch.device, remember: Path | None
) -> LocalPool:
    """Return the teachers in this process.

    remember: a folder in which answers are kept, for runs that show the same frames again
    """
    loaded = [open_teacher(name, url, device, remember) for name, url in teachers.items()]
    return LocalPool(loaded, grid, device=device)


def evaluate_teachers(
    teachers: dict[str, str], batches: Sequence[Sequence[Sample]], grid: tuple[int, int], device: torch.device
) -> dict[str, SanityReport]:
    """Return what is seen of each teacher on a few batches; raises TeacherError where one is not fit to teach."""
    return {name: check_teacher(load_teacher(url, device), batches, *grid) for name, url in teachers.items()}


def class_shares(pool: LocalPool, batches: Iterable[Sequence[Sample]]) -> dict[str, Tensor]:
    """Return, for each teacher of classes, float32 [K]: which share of the cells it gives to each class."""
    counts = {
        name: torch.zeros(card.channels, dtype=torch.float64)
        for name, card in pool.cards.items()
        if card.kind == "classification"
    }
    for _, targets in pool.follow(batches):
        for name, count in counts.items():
            target = targets[name]
            count += torch.bincount(target.values[target.valid].flatten().cpu(), minlength=len(count))
    return {name: (count / count.sum().clamp(min=1)).float() for name, count in counts.items()}


def precompute_targets(
    teachers: dict[str, str], frames: Frames, grid: tuple[int, int], device: torch.device, folder: Path
) -> None:
    """Ask the teachers about all of the frames and keep their answers in the folder, unless all are there."""
    if all_remembered(teachers, frames, grid, folder):
        return
    room = open_pool(teachers, grid, device, folder)
    for _ in room.follow(frames.stream(_AT_ONCE, shuffle=False).loader()):
        pass


def all_remembered(teachers: dict[str, str], frames: Frames, grid: tuple[int, int], folder: Path) -> bool:
    """Return whether the folder has every teacher's answer to every one of the frames."""
    width, height = frames.image_size
    cameras = {str(CAMERAS.index(camera)) for camera in frames.cameras}
    images = {
        commit.segment: sum(camera in cameras for group in commit.chunks for camera in group)
        for commit in frames.chosen.in_split(frames.split)
    }
    for url in teachers.values():
        answers = remembered_folder(folder, read_card(url), grid, (height, width))
        if any(remembered_count(answers / segment, frames.cameras) < count for segment, count in images.items()):
            return False
    return True
