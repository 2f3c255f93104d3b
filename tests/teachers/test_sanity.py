"""A teacher that is not what its card says stops the run before it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from datalake.sample import Sample
from teachers.card import TeacherCard, TeacherError
from teachers.classes import CAMERA_TO_MASK, IGNORED
from teachers.confusion import Confusion
from teachers.sanity import check_teacher
from teachers.target import Target
from tests.teachers.cards import lidar_card, lidar_teacher
from tests.teachers.mask_rcnn.test_teacher import SMALL, mask_card

GRID = (8, 12)
Answer = Callable[[Tensor], Tensor]


def knows(classes: Tensor) -> Tensor:
    """Return the labels themselves."""
    return classes


def says_background(classes: Tensor) -> Tensor:
    """Return background everywhere."""
    return torch.zeros_like(classes)


def mirrored(classes: Tensor) -> Tensor:
    """Return the labels on the wrong side of the image."""
    return classes.flip(1)


@dataclass
class LabelReader:
    """A mask teacher that reads the labels, and then says what `read` makes of them."""

    card: TeacherCard
    read: Answer
    network: nn.Module

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return classes of the top left of each image: which pixels does not matter here."""
        maps = [self.read(truth_of(sample))[:height, :width] for sample in samples]
        classes = torch.stack(maps)[:, None]
        return Target(tuple(sample.key for sample in samples), classes, torch.ones_like(classes, dtype=torch.bool))

    def confusion(self, samples: Sequence[Sample]) -> Confusion:
        """Return labels against answers."""
        truth = [truth_of(sample) for sample in samples]
        return Confusion.of(torch.stack(truth), torch.stack([self.read(each) for each in truth]), 4)


def truth_of(sample: Sample) -> Tensor:
    """Return the mask class of each pixel, the lower half of the image first."""
    assert sample.panoptic is not None
    classes = torch.tensor(CAMERA_TO_MASK)[sample.panoptic.semantic_class.long()].roll(32, 0)
    return classes.where(classes != IGNORED, torch.zeros_like(classes))


def reader(answer: Answer, metrics: dict[str, float] | None = None) -> LabelReader:
    """Return a frozen teacher with these metrics on its card."""
    network = nn.Linear(1, 1).eval().requires_grad_(False)
    return LabelReader(replace(mask_card(SMALL), metrics=metrics or {}), answer, network)


def test_a_sound_teacher_passes_and_is_described(drive_samples: list[Sample]) -> None:
    report = check_teacher(reader(knows, {"mIoU": 0.9, "accuracy": 0.9}), [drive_samples[:3], drive_samples[3:]], *GRID)
    assert report.samples == 6
    assert report.valid_share == 1
    assert report.labels == 6 * 64 * 96
    assert report.metrics["mIoU"] == 1
    assert report.metrics["trivial/accuracy"] > 0.5


def test_a_real_lidar_teacher_is_described(drive_samples: list[Sample]) -> None:
    teacher = lidar_teacher()
    metrics = teacher.confusion(drive_samples).metrics(teacher.card.class_names)
    teacher.card = replace(teacher.card, metrics=metrics)
    report = check_teacher(teacher, [drive_samples], *GRID)
    assert report.metrics == metrics
    assert 0.1 < report.valid_share < 1
    assert report.constant_channels < teacher.card.channels / 2


def test_a_teacher_below_its_card_is_refused(drive_samples: list[Sample]) -> None:
    with pytest.raises(TeacherError, match=r"masks: mIoU 0\.\d\d on these labels, its card says 0\.90") as caught:
        check_teacher(reader(mirrored, {"mIoU": 0.9}), [drive_samples], *GRID)
    assert "\n" not in str(caught.value)


def test_a_margin_below_the_card_is_allowed(drive_samples: list[Sample]) -> None:
    found = reader(mirrored).confusion(drive_samples).mean_iou()
    check_teacher(reader(mirrored, {"mIoU": found + 0.14}), [drive_samples], *GRID)
    with pytest.raises(TeacherError, match="its card says"):
        check_teacher(reader(mirrored, {"mIoU": found + 0.16}), [drive_samples], *GRID)


def test_without_metrics_a_teacher_has_to_beat_the_commonest_class(drive_samples: list[Sample]) -> None:
    with pytest.raises(TeacherError, match="no better than always predicting the commonest class"):
        check_teacher(lidar_teacher(), [drive_samples], *GRID)
    check_teacher(reader(knows), [drive_samples], *GRID)


def test_one_class_everywhere_is_no_answer(drive_samples: list[Sample]) -> None:
    with pytest.raises(TeacherError, match="predicts BACKGROUND in all 192 cells of 2 samples"):
        check_teacher(reader(says_background), [drive_samples[:2]], *GRID)


def test_training_mode_is_refused(drive_samples: list[Sample]) -> None:
    teacher = reader(knows)
    teacher.network = nn.Sequential(nn.BatchNorm1d(1)).requires_grad_(False).eval()
    teacher.network[0].train()
    with pytest.raises(TeacherError, match="masks: 0 is in training mode"):
        check_teacher(teacher, [drive_samples], *GRID)


def test_weights_that_could_learn_are_refused(drive_samples: list[Sample]) -> None:
    teacher = reader(knows)
    teacher.network.requires_grad_(True)
    with pytest.raises(TeacherError, match="masks: weight is not frozen"):
        check_teacher(teacher, [drive_samples], *GRID)


class Spoiled:
    """A lidar teacher whose answers are changed."""

    def __init__(self, change: Callable[[Target], Target]) -> None:
        self._teacher, self._change = lidar_teacher(), change
        self.card, self.network = lidar_card(), self._teacher.network

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return the changed answer."""
        return self._change(self._teacher.predict(samples, height, width))

    def confusion(self, samples: Sequence[Sample]) -> Confusion:
        """Return the teacher's own."""
        return self._teacher.confusion(samples)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda target: replace(target, values=target.values / 0), "NaN or infinite"),
        (lambda target: replace(target, values=torch.ones_like(target.values)), "every channel is constant over"),
        (lambda target: replace(target, valid=torch.zeros_like(target.valid)), "not one of 192 cells of 2 samples"),
        (lambda target: replace(target, keys=target.keys[::-1]), "of other samples than it was given"),
        (lambda target: replace(target, values=target.values[:, :5]), r"expected regression \[2, 12, 8, 12\]"),
        (lambda target: replace(target, values=target.values[:, :1].long()), "got: classification"),
    ],
)
def test_an_answer_of_no_use_is_refused(
    drive_samples: list[Sample], change: Callable[[Target], Target], complaint: str
) -> None:
    with pytest.raises(TeacherError, match=complaint):
        check_teacher(Spoiled(change), [drive_samples[:2]], *GRID)


def test_labels_of_nothing_leave_the_metrics_unknown(drive_samples: list[Sample]) -> None:
    assert drive_samples[0].lidar is not None
    unlabelled = replace(drive_samples[0], lidar=replace(drive_samples[0].lidar, semantic_class=None))
    report = check_teacher(lidar_teacher(), [[unlabelled]], *GRID)
    assert report.labels == 0
    assert report.metrics == {}
