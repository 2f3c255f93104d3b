"""From the command line's teachers to a pool that is fit to teach."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datalake.lake import Lake
from datalake.sample import Sample
from teachers.cached import CachedTeacher
from teachers.card import CARD_FILE, DETECTOR, TeacherCard, TeacherError, read_card
from teachers.load import load_teacher
from teachers.pool import LocalPool
from teachers.sanity import SanityReport, check_teacher
from teachers.teacher import Teacher
from training.checkpoint import CHECKPOINT_FILE
from training.run_dir import RunDir


@dataclass(frozen=True, slots=True)
class CachedTargets:
    """Which teachers' answers are looked up, in a split of a lake where `cache_targets.py` has put them.

    tables: teacher -> the name that it was cached under, None: its own; the other teachers are asked
    """

    lake: Lake
    split: str
    tables: dict[str, str | None]

    def open(self, name: str, url: str) -> CachedTeacher | None:
        """Return what is kept of the answers of the teacher in a folder, None where it is to be asked.

        Raises LakeError where a segment is missing or was cached with other weights, TeacherError where it is another
        teacher's.
        """
        if name not in self.tables:
            return None
        return CachedTeacher.open(self.lake, self.split, read_card(url), self.tables[name])


# What a detector's folder may have in place of a card: a checkpoint, or the weights of an exported student.
_DETECTOR_FILES = (CHECKPOINT_FILE, "student.safetensors")


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


def is_detector(url: str) -> bool:
    """Return whether a folder is a detector's: its card says so, or it is a run or an exported student without one."""
    folder = RunDir(url)
    if folder.exists(CARD_FILE):
        return read_card(url).kind == DETECTOR
    return any(map(folder.exists, _DETECTOR_FILES))


def read_cards(teachers: dict[str, str]) -> dict[str, TeacherCard]:
    """Return the teachers' cards by the names that the student calls them.

    Raises TeacherError for a detector's folder: no branch predicts what it does.
    """
    for name, url in teachers.items():
        if is_detector(url):
            raise TeacherError(f"{name}={url}: a detector, which no branch imitates; leave it out")
    return {name: read_card(url) for name, url in teachers.items()}


def parse_cached(arguments: Sequence[str], teachers: Iterable[str]) -> dict[str, str | None]:
    """Return teacher -> the name that its answers have in a lake, None: its own, for `spvcnn` or `spvcnn=TABLE`.

    Raises TeacherError for one that is not among the teachers.
    """
    parts = (text.partition("=") for text in arguments)
    tables = {name: table or None for name, _, table in parts}
    if unknown := sorted(tables.keys() - set(teachers)):
        raise TeacherError(
            f"--cached {unknown[0]}: expected one of the teachers {', '.join(teachers) or '(there is none)'}"
        )
    return tables


def open_teacher(name: str, url: str, device: torch.device | str, cached: CachedTargets | None = None) -> Teacher:
    """Return the teacher that the student calls `name` from its folder, or what is kept of its answers."""
    return (cached and cached.open(name, url)) or load_teacher(url, device)


def open_pool(
    teachers: dict[str, str], grid: tuple[int, int], device: torch.device, cached: CachedTargets | None = None
) -> LocalPool:
    """Return the teachers in this process."""
    opened = {name: open_teacher(name, url, device, cached) for name, url in teachers.items()}
    return LocalPool(opened, grid, device=device)


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
