"""Metrics and statistics of a teacher."""

from __future__ import annotations

import pytest
import torch

from datalake.sample import Lidar, Sample
from teachers.card import TeacherCard
from teachers.evaluation import compare_with_labels, measure_statistics
from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.objective import POINT_CLASSES
from teachers.spvnas.teacher import SpvnasTeacher, network_options, scan_of
from tests.teachers.samples import sample
from training.errors import TrainingError

CONFIG = NetworkConfig.spvcnn(0.125, len(POINT_CLASSES))


@pytest.fixture(scope="module")
def teacher() -> SpvnasTeacher:
    """An untrained lidar teacher without statistics."""
    torch.manual_seed(0)
    card = TeacherCard(
        name="spvcnn",
        kind="regression",
        architecture="spvcnn",
        options=network_options(CONFIG),
        channels=CONFIG.feature_width,
        class_names=POINT_CLASSES,
        weights_sha256="",
    )
    return SpvnasTeacher(card, SPVCNN(CONFIG))


def scene(number: int, labels: bool = True) -> Sample:
    """Return an image of 12 x 8 pixels in which 50 of 60 TOP points have a pixel of their own."""
    random = torch.Generator().manual_seed(number)
    points = torch.rand(4, 60, generator=random) * torch.tensor([[20.0], [20.0], [3.0], [1.0]])
    pixel = torch.arange(50)
    lidar = Lidar(
        points=points,
        laser=torch.ones(60, dtype=torch.int8),
        semantic_class=(torch.arange(60) % 4).to(torch.int8) if labels else None,
        pixel_point=pixel.int(),
        pixel_uv=torch.stack([pixel % 12 + 0.5, pixel // 12 + 0.5]),
        pixel_depth_m=torch.ones(50),
    )
    return sample(number, lidar=lidar)


def test_statistics_are_those_of_the_points_that_pixels_show(teacher: SpvnasTeacher) -> None:
    samples = [scene(number) for number in range(3)]
    found = measure_statistics(teacher, samples)
    rows = []
    for one in samples:
        assert one.lidar is not None
        (answer,) = teacher._lidar.predict([scan_of(one.lidar)])
        rows.append(answer.features[:50])
    expected = torch.cat(rows).double()
    torch.testing.assert_close(torch.tensor(found.mean), expected.mean(0).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.tensor(found.variance), expected.var(0, correction=0).float(), rtol=1e-4, atol=0)


def test_every_labelled_point_is_compared_once(teacher: SpvnasTeacher) -> None:
    confusion = compare_with_labels(teacher, [scene(number) for number in range(5)])
    assert confusion.counts.sum(1).tolist() == [75, 75, 75, *[0] * 19]
    assert confusion.metrics(POINT_CLASSES)["trivial/accuracy"] == pytest.approx(1 / 3)


def test_without_labels_there_is_nothing_to_say(teacher: SpvnasTeacher) -> None:
    unlabelled = [scene(number, labels=False) for number in range(2)]
    with pytest.raises(TrainingError, match="spvcnn: the evaluation split has no labels"):
        compare_with_labels(teacher, unlabelled)
