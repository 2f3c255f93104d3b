"""Places that two images of a drive show: against the simulator's panoptic ids, and against geometry by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datalake.build import BuildConfig
from datalake.lake import open_lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.sample import Lidar, Sample, SampleKey
from datalake.synthetic import DriveConfig, write_drives
from student.pretraining.correspondence import above_ground, correspondences, project, rays
from teachers.classes import CAMERA_TO_MASK
from tests.lakes import build_files
from tests.student.students import objects_of

INTRINSIC = np.array([100.0, 101.0, 48.0, 33.0, -0.03, 0.012, 0.0006, -0.0004, 0.0])
# To the camera's x forward, y left, z up.
IDENTITY = torch.eye(4, dtype=torch.float64)


def lidar_of(uv: np.ndarray, metres: np.ndarray, points: np.ndarray | None = None) -> Lidar:
    count = len(metres)
    xyz = np.zeros((4, count)) if points is None else np.concatenate([points, np.zeros((1, points.shape[1]))])
    return Lidar(
        points=torch.from_numpy(xyz).float(),
        laser=torch.ones(xyz.shape[1], dtype=torch.int8),
        semantic_class=None,
        pixel_point=torch.arange(count, dtype=torch.int32),
        pixel_uv=torch.from_numpy(uv.T.copy()).float(),
        pixel_depth_m=torch.from_numpy(metres).float(),
    )


def image_of(lidar: Lidar | None, pose: torch.Tensor = IDENTITY) -> Sample:
    return Sample(
        key=SampleKey("s", 0, "FRONT"),
        image=torch.zeros(3, 66, 96, dtype=torch.uint8),
        objects=objects_of(),
        lidar=lidar,
        panoptic=None,
        intrinsic=torch.from_numpy(INTRINSIC),
        camera_to_vehicle=IDENTITY,
        exposed_vehicle_to_world=pose,
    )


def test_rays_of_pixels_lead_back_to_them() -> None:
    pixels = np.random.default_rng(0).uniform((0, 0), (96, 66), (50, 2))
    directions = rays(pixels, INTRINSIC)
    assert np.linalg.norm(directions, axis=1) == pytest.approx(np.ones(50))
    assert project(7.3 * directions, INTRINSIC) == pytest.approx(pixels, abs=1e-6)


def test_axes_are_forward_left_and_up() -> None:
    plain = INTRINSIC * np.array([1, 1, 1, 1, 0, 0, 0, 0, 0])
    # One metre left and one up at ten metres.
    assert project(np.array([[10.0, 1.0, 1.0]]), plain)[0].tolist() == pytest.approx([48 - 10, 33 - 10.1])


def test_a_place_ahead_spreads_from_the_center_as_the_car_drives_on() -> None:
    points = np.array([[20.0, 3.0, 1.0], [30.0, -4.0, 2.0]])
    ahead = IDENTITY.clone()
    ahead[0, 3] = 5
    moved = points - [5.0, 0, 0]
    first, second = (project(each, INTRINSIC) for each in (points, moved))
    one = image_of(lidar_of(first, np.linalg.norm(points, axis=1)))
    other = image_of(lidar_of(second, np.linalg.norm(moved, axis=1)), ahead)
    found = correspondences(one, other)
    assert found.first == pytest.approx(first, abs=1e-3)
    assert found.second == pytest.approx(second, abs=1e-3)
    # Whatever the world's origin is.
    elsewhere = torch.eye(4, dtype=torch.float64)
    elsewhere[:3, 3] = torch.tensor([4e5, -3e5, 100.0])
    elsewhere[:2, :2] = torch.tensor([[0.0, -1], [1, 0]])
    turned = [replace(s, exposed_vehicle_to_world=elsewhere @ pose) for s, pose in ((one, IDENTITY), (other, ahead))]
    assert correspondences(*turned).second == pytest.approx(second, abs=1e-3)


@pytest.mark.parametrize(
    ("own", "is_kept"),
    [
        ([20.2], True),
        # It has moved away, or something has come before it.
        ([25.0], False),
        ([20.2, 12.0], False),
        ([], False),
    ],
)
def test_a_place_counts_where_the_second_images_returns_agree(own: list[float], is_kept: bool) -> None:
    point = np.array([[20.0, 1.0, 0.0]])
    pixel = project(point, INTRINSIC)
    one = image_of(lidar_of(pixel, np.linalg.norm(point, axis=1)))
    other = image_of(lidar_of(np.repeat(pixel, len(own), 0) + 0.3, np.array(own)))
    assert len(correspondences(one, other)) == int(is_kept)
    # What is before it in the first image hides it as well.
    if is_kept:
        both = lidar_of(np.repeat(pixel, 2, 0), np.array([20.03, 9.0]))
        kept = correspondences(replace(one, lidar=both), other)
        assert not (np.abs(kept.first - pixel) < 0.1).all(1).any()


def test_images_without_poses_or_points_have_none() -> None:
    there = image_of(lidar_of(np.array([[48.0, 33.0]]), np.array([20.0])))
    assert len(correspondences(there, there)) == 1
    assert len(correspondences(there, replace(there, lidar=None))) == 0
    assert len(correspondences(replace(there, exposed_vehicle_to_world=None), there)) == 0


def test_heights_are_above_the_plane_of_the_road_on_a_slope() -> None:
    random = np.random.default_rng(0)
    x, y = random.uniform(-30, 30, (2, 4000))
    slope = 0.05 * x - 0.02 * y - 1.5
    # A quarter of the returns is of things up to three metres high.
    height = np.where(random.random(4000) < 0.25, random.uniform(0.5, 3, 4000), 0)
    points = np.stack([x, y, slope + height + random.normal(0, 0.01, 4000)])
    found = above_ground(lidar_of(np.zeros((0, 2)), np.zeros(0), points))
    assert np.abs(found - height).max() < 0.1
    assert above_ground(lidar_of(np.zeros((0, 2)), np.zeros(0), np.zeros((3, 0)))).shape == (0,)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Sample, Sample]]:
    """Three pairs of images half a second apart, as large as in the records."""
    folder: Path = tmp_path_factory.mktemp("pairs")
    drives = DriveConfig(
        image_width=288, image_height=192, beams=32, columns=720, cameras=("FRONT",), frame_rate_hz=2.0
    )
    sources = write_drives(str(folder / "drives"), drives, segments=3, frames=2, seed=8)
    build_files(str(folder / "lake"), sources, BuildConfig(split="train", cameras=("FRONT",)))
    config = LoaderConfig(split="train", panoptic=True, poses=True, shuffle=False, global_batch=2)
    samples = list(SampleStream(open_lake(str(folder / "lake")), config))
    return list(zip(samples[::2], samples[1::2], strict=True))


def shares(pairs: list[tuple[Sample, Sample]]) -> tuple[float, float, int]:
    """Return how many ends have one id, of all and of those on vehicles, pedestrians and cyclists; and how many."""
    ends = []
    for one, other in pairs:
        found = correspondences(one, other)
        ids = []
        for sample, uv in ((one, found.first), (other, found.second)):
            assert sample.panoptic is not None
            column, row = np.floor(uv).astype(int).T
            semantic = sample.panoptic.semantic_class.numpy()[row, column].astype(int)
            ids.append(semantic * 100_000 + sample.panoptic.instance.numpy()[row, column])
        ends.append(np.stack(ids))
    first, second = np.concatenate(ends, 1)
    kinds = np.array(CAMERA_TO_MASK)[first // 100_000]
    is_object = (kinds > 0) & (kinds < 255)
    same = first == second
    return float(same.mean()), float(same[is_object].mean()), len(same)


def test_both_ends_show_the_same_thing(pairs: list[tuple[Sample, Sample]]) -> None:
    everywhere, on_objects, count = shares(pairs)
    assert count > 300
    assert everywhere >= 0.97
    assert on_objects >= 0.9


def test_wrong_poses_lose(pairs: list[tuple[Sample, Sample]]) -> None:
    poses = [other.exposed_vehicle_to_world for _, other in pairs]
    turned = [
        (one, replace(other, exposed_vehicle_to_world=pose))
        for (one, other), pose in zip(pairs, poses[1:] + poses[:1], strict=True)
    ]
    moved = []
    for one, other in pairs:
        assert other.exposed_vehicle_to_world is not None
        pose = other.exposed_vehicle_to_world.clone()
        pose[:3, 3] += pose[:3, 1]
        moved.append((one, replace(other, exposed_vehicle_to_world=pose)))
    right, of_objects, count = shares(pairs)
    # Other drives' poses lead out of the image; a metre to the side, to other things.
    assert sum(len(correspondences(one, other)) for one, other in turned) < 0.1 * count
    assert shares(moved)[0] < right - 0.03 or shares(moved)[1] < of_objects - 0.1


def test_an_image_corresponds_to_itself(pairs: list[tuple[Sample, Sample]]) -> None:
    one = pairs[0][0]
    found = correspondences(one, one)
    assert len(found) > 100
    assert np.abs(found.first - found.second).max() < 0.5
