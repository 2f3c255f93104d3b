"""The lidar teacher's features, where the camera sees their points."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datalake.sample import Lidar, Sample
from teachers.card import TeacherError, read_card, write_card
from teachers.classes import LIDAR_CLASSES
from teachers.load import load_teacher
from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import PointPrediction
from teachers.spvnas.point_teacher import LidarTeacher
from teachers.spvnas.teacher import SpvnasTeacher, network_config, network_options, scan_of
from teachers.spvnas.voxels import VoxelBatch
from teachers.statistics import Moments, standardize
from tests.teachers.cards import CONFIG, lidar_card, lidar_folder, lidar_teacher
from tests.teachers.spvnas.clouds import small_network

GRID = (16, 24)


def lidar_of(sample: Sample) -> Lidar:
    """Return the sample's points."""
    assert sample.lidar is not None
    return sample.lidar


def test_a_cell_has_the_feature_of_the_nearest_point_in_it(drive_samples: list[Sample]) -> None:
    sample = drive_samples[0]
    lidar = lidar_of(sample)
    target = lidar_teacher().predict([sample], *GRID)
    (answer,) = LidarTeacher(small_network()).predict([scan_of(lidar)])
    column, row = (lidar.pixel_uv * torch.tensor([[24 / 96], [16 / 64]])).long()
    cells = Counter(zip(row.tolist(), column.tolist(), strict=True))
    assert len(cells) == int(target.valid.sum())
    for cell, _ in cells.most_common(20):
        here = ((row == cell[0]) & (column == cell[1])).nonzero()[:, 0]
        nearest = here[lidar.pixel_depth_m[here].argmin()]
        torch.testing.assert_close(target.values[0, :, *cell], answer.features[lidar.pixel_point[nearest]])


def test_each_frame_is_looked_at_once(drive_samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    ask = LidarTeacher.ask

    def counted(self: LidarTeacher, voxels: VoxelBatch) -> PointPrediction:
        asked.append(voxels.points)
        return ask(self, voxels)

    together = [drive_samples[0], drive_samples[2], drive_samples[1]]
    assert [sample.key.camera for sample in together] == ["FRONT", "FRONT", "FRONT_LEFT"]
    alone = [lidar_teacher().predict([sample], *GRID).values[0] for sample in together]
    monkeypatch.setattr(LidarTeacher, "ask", counted)
    target = lidar_teacher().predict(together, *GRID)
    assert asked == [tuple(lidar_of(sample).points.shape[1] for sample in together[:2])]
    assert target.keys == tuple(sample.key for sample in together)
    torch.testing.assert_close(target.values, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_points_of_other_lasers_take_no_part(drive_samples: list[Sample]) -> None:
    sample = drive_samples[0]
    lidar = lidar_of(sample)
    # Some points of another laser stand before, between and behind those of TOP, and nearer to the camera.
    laser = lidar.laser.clone()
    laser[::3] = 2
    top = (laser == 1).nonzero()[:, 0]
    number = torch.full((len(laser),), -1)
    number[top] = torch.arange(len(top))
    kept = laser[lidar.pixel_point.long()] == 1
    nearer = lidar.pixel_depth_m.where(kept, torch.tensor(0.5))
    mixed = replace(sample, lidar=replace(lidar, laser=laser, pixel_depth_m=nearer))
    alone = replace(
        sample,
        lidar=Lidar(
            lidar.points[:, top],
            laser[top],
            None,
            number[lidar.pixel_point.long()][kept].int(),
            lidar.pixel_uv[:, kept],
            lidar.pixel_depth_m[kept],
        ),
    )
    with_others, without = (lidar_teacher().predict([each], *GRID) for each in (mixed, alone))
    assert torch.equal(with_others.valid, without.valid)
    assert torch.equal(with_others.values, without.values)


def test_a_frame_without_points_has_no_valid_cell(drive_samples: list[Sample]) -> None:
    empty = Lidar(
        torch.zeros(4, 0),
        torch.zeros(0, dtype=torch.int8),
        None,
        torch.zeros(0, dtype=torch.int32),
        torch.zeros(2, 0),
        torch.zeros(0),
    )
    for dilate in (False, True):
        teacher = SpvnasTeacher(lidar_card(), small_network(), dilate=dilate)
        target = teacher.predict([replace(drive_samples[0], lidar=empty), drive_samples[2]], *GRID)
        assert not target.valid[0].any()
        assert target.valid[1].any()


def test_a_sample_loaded_without_points_is_refused(drive_samples: list[Sample]) -> None:
    with pytest.raises(TeacherError, match=r"FRONT.*loaded without points.*use points=True"):
        lidar_teacher().predict([replace(drive_samples[0], lidar=None)], *GRID)


def test_the_cards_statistics_standardize(drive_samples: list[Sample]) -> None:
    raw = lidar_teacher().predict(drive_samples, *GRID)
    statistics = Moments.of_target(raw).statistics()
    standard = lidar_teacher(statistics).predict(drive_samples, *GRID)
    torch.testing.assert_close(standard.values, standardize(raw, statistics).values)
    after = Moments.of_target(standard).statistics()
    assert max(map(abs, after.mean)) < 1e-4


def test_labelled_points_are_counted_once_per_frame(drive_samples: list[Sample]) -> None:
    teacher = lidar_teacher()
    both, one = teacher.confusion(drive_samples[:2]), teacher.confusion(drive_samples[:1])
    assert torch.equal(both.counts, one.counts)
    labels = lidar_of(drive_samples[0]).semantic_class
    assert labels is not None
    asked = (labels > 0) & (labels <= CONFIG.classes)
    assert one.total == int(asked.sum())
    assert int(one.counts[LIDAR_CLASSES.index("ROAD") - 1].sum()) == int((labels == LIDAR_CLASSES.index("ROAD")).sum())


def test_points_without_labels_give_no_metrics(drive_samples: list[Sample]) -> None:
    unlabelled = replace(drive_samples[0], lidar=replace(lidar_of(drive_samples[0]), semantic_class=None))
    assert lidar_teacher().confusion([unlabelled]).total == 0


def test_a_folder_is_all_it_takes(tmp_path: Path, drive_samples: list[Sample]) -> None:
    url = lidar_folder(tmp_path / "lidar")
    teacher = load_teacher(url)
    expected = SpvnasTeacher(read_card(url), small_network())
    assert isinstance(teacher, SpvnasTeacher)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    grid = drive_samples[:1], *GRID
    assert torch.equal(teacher.predict(*grid).values, expected.predict(*grid).values)


def test_a_folder_whose_weights_are_of_another_network_is_refused(tmp_path: Path) -> None:
    url = lidar_folder(tmp_path / "lidar")
    card = read_card(url)
    other = NetworkConfig.spvcnn(0.25)
    wider = replace(card, options=network_options(other), channels=other.feature_width, statistics=None)
    write_card(url, wider)
    with pytest.raises(TeacherError, match="does not fit the network") as caught:
        load_teacher(url)
    assert "\n" not in str(caught.value)


def test_a_card_that_contradicts_its_network_is_refused() -> None:
    with pytest.raises(TeacherError, match="the card has 11 channels and 19 classes, the network 12 and 19"):
        SpvnasTeacher(replace(lidar_card(), channels=11), small_network())


def test_options_survive_the_card(tmp_path: Path) -> None:
    config = replace(NetworkConfig.spvcnn(0.25, classes=22), voxel_m=0.1)
    write_card(str(tmp_path), replace(lidar_card(), options=network_options(config)))
    assert network_config(read_card(str(tmp_path)).options) == config
    with pytest.raises(TeacherError, match="not those of an SPVCNN"):
        network_config({"width": 0.25})


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    write_card(str(tmp_path), replace(lidar_card(), architecture="crystal_ball"))
    with pytest.raises(TeacherError, match="unknown architecture 'crystal_ball'"):
        load_teacher(str(tmp_path))
    with pytest.raises(TeacherError, match="expected architecture spvcnn"):
        SpvnasTeacher.load(str(tmp_path))
