"""From a folder to a teacher."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from teachers.card import TeacherCard, TeacherError, read_card
from teachers.mask_rcnn import teacher as mask_rcnn
from teachers.mask_rcnn.teacher import MaskRcnnTeacher
from teachers.spvnas import teacher as spvnas
from teachers.spvnas.teacher import SpvnasTeacher


def load_teacher(url: str, device: torch.device | str = "cpu") -> SpvnasTeacher | MaskRcnnTeacher:
    """Return the teacher in a folder, whatever it is; raises TeacherError, in one line, where it cannot be used."""
    architecture = read_card(url).architecture
    if architecture == spvnas.ARCHITECTURE:
        return SpvnasTeacher.load(url, device)
    if architecture == mask_rcnn.ARCHITECTURE:
        return MaskRcnnTeacher.load(url, device)
    raise TeacherError(
        f"{url}: unknown architecture {architecture!r}; there are {spvnas.ARCHITECTURE}, {mask_rcnn.ARCHITECTURE}"
    )


def needs_points(cards: Iterable[TeacherCard]) -> bool:
    """Return whether one of the teachers looks at the lidar's points."""
    return any(card.architecture == spvnas.ARCHITECTURE for card in cards)
