"""Checks of a teacher before a student is distilled from it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from datalake.sample import Sample
from teachers.card import TeacherError
from teachers.confusion import Confusion
from teachers.statistics import Moments
from teachers.target import Target
from teachers.teacher import Teacher

# A few batches are a small sample of a lake, so metrics over them scatter. The margin leaves room for that; a teacher
# whose points or pixels are scrambled, or that sees inputs unlike those it was trained on, should lose far more.
MARGIN = 0.15
_COMPARED = ("accuracy", "mIoU")
_CONSTANT_VARIANCE = 1e-12

_log = logging.getLogger(__name__)


class ComparableTeacher(Teacher, Protocol):
    """A teacher whose network can be inspected and whose classes can be compared with the lake's labels."""

    @property
    def network(self) -> nn.Module:
        """The teacher's network."""

    def confusion(self, samples: Sequence[Sample]) -> Confusion:
        """Return labels against predictions, at the teacher's own resolution; empty where nothing is labelled."""


@dataclass(frozen=True, slots=True)
class SanityReport:
    """What was found of a teacher that passed its checks.

    valid_share: share of the cells that it predicts
    constant_channels: of a regression teacher, how many channels have one value in all valid cells
    labels: how many points or pixels were compared with labels; with none, its accuracy is unknown
    metrics: of these labels, named as in the card
    """

    teacher: str
    samples: int
    valid_share: float
    constant_channels: int
    labels: int
    metrics: dict[str, float]


def check_teacher(
    teacher: ComparableTeacher,
    batches: Iterable[Sequence[Sample]],
    height: int,
    width: int,
    margin: float = MARGIN,
) -> SanityReport:
    """Run the teacher on a few batches and return what was found.

    Raises TeacherError, in one line, where the network is not frozen and in eval mode; where a target is of other
    samples, of another form than the card says, or not finite; where no cell is valid; where the target is the same in
    every cell; where accuracy or mIoU on the labels is more than `margin` below the card's figure of that name; and
    where a card without metrics names a teacher whose mIoU is no better than always predicting the commonest class.
    """
    name = teacher.card.name
    _check_frozen(teacher.network, name)
    classes = len(teacher.card.class_names)
    confusion, moments, seen = Confusion.empty(classes), Moments.empty(teacher.card.channels), torch.zeros(classes)
    samples = cells = valid = 0
    for batch in batches:
        target = teacher.predict(batch, height, width)
        _check_form(target, teacher, batch, (height, width))
        samples, cells, valid = samples + len(batch), cells + target.valid.numel(), valid + int(target.valid.sum())
        if target.kind == "regression":
            moments += Moments.of_target(target)
        else:
            seen += torch.bincount(target.values[target.valid], minlength=classes).cpu()
        confusion += teacher.confusion(batch)
    if not valid:
        raise TeacherError(f"teacher {name}: not one of {cells:,} cells of {samples} samples is valid")
    constant = 0
    if teacher.card.kind == "regression":
        constant = sum(variance <= _CONSTANT_VARIANCE for variance in moments.statistics().variance)
        if constant == teacher.card.channels:
            raise TeacherError(
                f"teacher {name}: every channel is constant over {valid:,} cells; are its weights loaded?"
            )
    elif int((seen > 0).sum()) < 2:
        only = teacher.card.class_names[int(seen.argmax())]
        raise TeacherError(f"teacher {name}: predicts {only} in all {valid:,} cells of {samples} samples")
    metrics = confusion.metrics(teacher.card.class_names)
    _check_metrics(teacher, metrics, margin)
    report = SanityReport(name, samples, valid / cells, constant, confusion.total, metrics)
    _log.info("%s", report)
    return report


def _check_frozen(network: nn.Module, name: str) -> None:
    if training := [path or "the network" for path, module in network.named_modules() if module.training]:
        raise TeacherError(f"teacher {name}: {training[0]} is in training mode; call eval()")
    if learning := [path for path, parameter in network.named_parameters() if parameter.requires_grad]:
        raise TeacherError(f"teacher {name}: {learning[0]} is not frozen; call requires_grad_(False)")


def _check_form(target: Target, teacher: ComparableTeacher, batch: Sequence[Sample], grid: tuple[int, int]) -> None:
    card = teacher.card
    channels = card.channels if card.kind == "regression" else 1
    expected = (len(batch), channels, *grid)
    if target.keys != tuple(sample.key for sample in batch):
        raise TeacherError(f"teacher {card.name}: the target is of other samples than it was given")
    if target.kind != card.kind or target.values.shape != expected:
        raise TeacherError(
            f"teacher {card.name}: expected {card.kind} {list(expected)}, got: {target.kind}"
            f" {list(target.values.shape)}"
        )
    parts = [target.values, *([] if target.confidence is None else [target.confidence])]
    if not all(bool(part.isfinite().all()) for part in parts):
        raise TeacherError(f"teacher {card.name}: the target has values that are NaN or infinite")


def _check_metrics(teacher: ComparableTeacher, metrics: dict[str, float], margin: float) -> None:
    card = teacher.card
    for name in _COMPARED:
        if name in metrics and metrics[name] < card.metrics.get(name, 0) - margin:
            raise TeacherError(
                f"teacher {card.name}: {name} {metrics[name]:.2f} on these labels, its card says"
                f" {card.metrics[name]:.2f}: is this the data that it was made for, and read the same way?"
            )
    # Accuracy would be no measure here: with background nearly everywhere, predicting it is hard to beat. And where the
    # labels are of one class alone, it cannot be beaten.
    if metrics and "mIoU" not in card.metrics and metrics["mIoU"] <= metrics["trivial/mIoU"] < 1:
        raise TeacherError(
            f"teacher {card.name}: mIoU {metrics['mIoU']:.2f} on these labels is no better than always predicting the"
            f" commonest class ({metrics['trivial/mIoU']:.2f})"
        )
