"""Regions of lidar and of labels, and where views show them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from datalake.sample import Panoptic, Sample
from student.config import StudentError
from student.pretraining.correspondence import project
from student.pretraining.regions import connected, lidar_regions, panoptic_regions, view_masks
from student.pretraining.views import Crop
from tests.student.pretraining.test_correspondence import IDENTITY, INTRINSIC, image_of, lidar_of


def test_points_hang_together_as_a_flood_over_their_voxels_says() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        points = random.uniform(0, 8, (60, 3))
        found = connected(points, np.full(60, 10.0))
        voxels = np.floor(points / 0.5).astype(int)
        expected, number = np.full(60, -1), 0
        for start in range(60):
            if expected[start] >= 0:
                continue
            stack = [start]
            while stack:
                at = stack.pop()
                if expected[at] < 0:
                    expected[at] = number
                    stack += [o for o in range(60) if expected[o] < 0 and np.abs(voxels[o] - voxels[at]).max() <= 1]
            number += 1
        for one, other in itertools.combinations(range(60), 2):
            assert (found[one] == found[other]) == (expected[one] == expected[other])


def test_far_points_hang_together_over_larger_gaps_and_near_ones_do_not() -> None:
    def row(step: float) -> np.ndarray:
        return np.stack([np.arange(6) * step, np.zeros(6), np.zeros(6)], 1)

    assert connected(row(1.05), np.full(6, 10.0)).max() == 5
    assert connected(row(0.45), np.full(6, 10.0)).max() == 0
    assert connected(row(0.95), np.full(6, 60.0)).max() == 0
    assert connected(np.zeros((0, 3)), np.zeros(0)).shape == (0,)


def test_a_thing_across_the_range_of_both_links_is_one() -> None:
    row = np.stack([np.arange(26.0, 38.0, 0.4), np.zeros(30), np.zeros(30)], 1)
    assert connected(row, row[:, 0]).max() == 0


def scene(pose: torch.Tensor, moved: float = 0.0) -> Sample:
    """Return an image of two walls of returns two metres high, ahead, above the ground; the second one may move."""
    wall = [(x, y, z) for x, y0 in ((12.0, 2.0), (15.0, -3.0 + moved)) for y in np.arange(y0, y0 + 1.5, 0.1)
            for z in np.arange(0.5, 2.0, 0.1)]  # fmt: skip
    ground = [(x, y, -1.6) for x in np.arange(4.0, 30, 1) for y in np.arange(-8.0, 8, 1)]
    world = np.array(wall + ground)
    seen = (world - pose[:3, 3].numpy())[:, :3]
    pixels = project(seen, INTRINSIC)
    inside = (pixels > 0).all(1) & (pixels < (96, 66)).all(1)
    lidar = lidar_of(pixels[inside], np.linalg.norm(seen[inside], axis=1), seen[inside].T)
    return image_of(lidar, pose)


def ahead(metres: float) -> torch.Tensor:
    pose = IDENTITY.clone()
    pose[0, 3] = metres
    return pose


def test_things_above_the_ground_are_regions_that_both_images_share() -> None:
    pair = scene(ahead(0)), scene(ahead(2))
    found = lidar_regions(pair, (11, 16), 4)
    assert sorted(set(found.ravel().tolist())) == [-1, 0, 1]
    columns = [[int(np.median(np.nonzero(image == number)[1])) for number in range(2)] for image in found]
    # Left of the center in both images is one thing, right of it the other.
    left, right = (0, 1) if columns[0][0] < 8 else (1, 0)
    assert all(image[left] < 8 < image[right] for image in columns)
    # The ground is none.
    assert (found[:, 9:] == -1).all()


def test_what_has_moved_is_another_region() -> None:
    found = lidar_regions((scene(ahead(0)), scene(ahead(2), moved=-2.5)), (11, 16), 4)
    shared = set(found[0].ravel().tolist()) & set(found[1].ravel().tolist())
    assert len(shared - {-1}) == 1


def test_the_largest_segments_come_first() -> None:
    found = lidar_regions((scene(ahead(0)),), (11, 16), 1)
    assert set(found.ravel().tolist()) == {-1, 0}


def test_images_without_points_are_refused() -> None:
    with pytest.raises(StudentError, match="no points or calibration; choose other --odin"):
        lidar_regions((image_of(None),), (4, 4), 2)
    with pytest.raises(StudentError, match="no pose"):
        lidar_regions((replace(scene(ahead(0)), exposed_vehicle_to_world=None),), (4, 4), 2)
    with pytest.raises(StudentError, match="no panoptic label"):
        panoptic_regions((scene(ahead(0)),), (4, 4), 2)


def test_labels_are_regions_by_class_and_instance_the_same_in_both_images() -> None:
    def labelled(column: int) -> Sample:
        semantic, instance = torch.full((66, 96), 20, dtype=torch.uint8), torch.zeros(66, 96, dtype=torch.int32)
        semantic[:, column : column + 24], instance[:, column : column + 24] = 2, 7
        semantic[:11] = 0
        return replace(image_of(None), panoptic=Panoptic(semantic, instance))

    found = panoptic_regions((labelled(0), labelled(48)), (6, 8), 5)
    assert found[0, 2].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert found[1, 2].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert (found[:, 0] == -1).all()


@pytest.mark.parametrize(("of_first", "of_second"), list(itertools.product([False, True], repeat=2)))
def test_mean_places_of_a_region_agree_in_both_views_to_half_a_cell(of_first: bool, of_second: bool) -> None:
    # A region that lies in both views, on the whole image's grid of cells of 8 pixels.
    regions = torch.full((1, 16, 24), -1)
    regions[0, 6:10, 9:14] = 0
    regions[0, :3] = 1
    means, cells = [], []
    for crop in (Crop(40, 24, 150, 110, of_first), Crop(64, 40, 130, 88, of_second)):
        masks = view_masks(regions, (192, 128), [crop], (12, 16), 2)
        wide, high = (crop.x1 - crop.x0) / 16, (crop.y1 - crop.y0) / 12
        columns = 15 - torch.arange(16) if crop.mirrored else torch.arange(16)
        x = crop.x0 + (columns + 0.5) * wide
        y = crop.y0 + (torch.arange(12) + 0.5) * high
        mask = masks[0, 0]
        means.append((float((mask * x).sum() / mask.sum()), float((mask * y[:, None]).sum() / mask.sum())))
        cells.append((wide, high))
    assert abs(means[0][0] - means[1][0]) < max(wide for wide, _ in cells) / 2
    assert abs(means[0][1] - means[1][1]) < max(high for _, high in cells) / 2
    assert means[0] == pytest.approx((92, 64), abs=4)


def test_cells_show_the_region_that_most_of_them_does_by_loops() -> None:
    random = torch.Generator().manual_seed(0)
    regions = torch.randint(-1, 3, (2, 8, 8), generator=random)
    crops = [Crop(0, 0, 64, 64, False), Crop(16, 8, 48, 56, True)]
    found = view_masks(regions, (64, 64), crops, (4, 4), 3)
    for view, crop in enumerate(crops):
        for row, column in itertools.product(range(4), range(4)):
            counts = [0] * 4
            for i, j in itertools.product(range(4), range(4)):
                across = (4 * column + j + 0.5) / 16
                across = 1 - across if crop.mirrored else across
                x = crop.x0 + across * (crop.x1 - crop.x0)
                y = crop.y0 + (4 * row + i + 0.5) / 16 * (crop.y1 - crop.y0)
                counts[int(regions[view, int(y / 8), int(x / 8)]) % 4] += 1
            best = counts.index(max(counts))
            assert found[view, :, row, column].tolist() == [float(best == k) for k in range(3)]
