"""What is clustered."""

from __future__ import annotations

import pytest
import torch

from student.config import StudentConfig
from student.evaluation.cells import TrunkCells, VitCells, color_and_place, resized, rows_of, standardized
from student.pretraining.vit import Vit, VitConfig
from student.trunk import build_trunk
from tests.student.students import TINY


def test_cells_of_a_trunk_are_its_finest_map() -> None:
    torch.manual_seed(0)
    trunk = build_trunk(TINY).eval()
    images = torch.rand(2, 3, 64, 96)
    found = TrunkCells(trunk, (0.4,) * 3, (0.2,) * 3, 4)(images)
    assert found.shape == (2, TINY.width, 16, 24)
    torch.testing.assert_close(found, trunk((images - 0.4) / 0.2).fine.detach())


def test_cells_of_a_transformer_are_interpolated_between_its_patches() -> None:
    torch.manual_seed(0)
    vit = Vit(VitConfig(dimensions=16, blocks=1, heads=2, patch=8, size=(48, 32))).eval()
    images = torch.rand(1, 3, 32, 48)
    found = VitCells(vit, (0.4,) * 3, (0.2,) * 3, 4)(images)
    patches = vit((images - 0.4) / 0.2).patches.detach()
    assert found.shape == (1, 16, 8, 12)
    # A quarter of the way from one patch's center to the next, in both directions.
    near = 0.75 * patches[0, :, 1, 2] + 0.25 * patches[0, :, 1, 3]
    far = 0.75 * patches[0, :, 2, 2] + 0.25 * patches[0, :, 2, 3]
    torch.testing.assert_close(found[0, :, 3, 5], 0.75 * near + 0.25 * far)


def test_a_trunk_at_the_images_resolution_is_averaged() -> None:
    torch.manual_seed(0)
    trunk = build_trunk(StudentConfig(trunk="stride1", stages=(4, 4, 4), blocks=(1, 1))).eval()
    images = torch.rand(1, 3, 16, 16)
    found = TrunkCells(trunk, (0.0,) * 3, (1.0,) * 3, 4)(images)
    fine = trunk(images).fine.detach()
    assert found.shape[2:] == (4, 4)
    torch.testing.assert_close(found[0, :, 1, 2], fine[0, :, 4:8, 8:12].mean((1, 2)))


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        # Of sRGB under D65, as tables have them.
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
        ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
    ],
)
def test_colors_are_those_of_cielab(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    image = torch.tensor(rgb)[None, :, None, None].expand(1, 3, 4, 4)
    assert color_and_place(image, (2, 2))[0, :3, 0, 0].tolist() == pytest.approx(lab, abs=0.05)


def test_places_are_the_cells_centers() -> None:
    found = color_and_place(torch.zeros(1, 3, 8, 8), (2, 4))[0, 3:]
    assert found[0, 0].tolist() == [0.125, 0.375, 0.625, 0.875]
    assert found[1, :, 0].tolist() == [0.25, 0.75]


def test_standardized_places_count_half() -> None:
    rows = torch.randn(50, 4, 5, generator=torch.Generator().manual_seed(0)) * 7 + 3
    flat = standardized(rows, rows).flatten(0, 1)
    assert flat.mean(0).tolist() == pytest.approx([0] * 5, abs=1e-5)
    assert flat.std(0).tolist() == pytest.approx([1, 1, 1, 0.5, 0.5], abs=1e-5)


def test_rows_go_through_the_grid_line_by_line() -> None:
    maps = torch.arange(12.0).reshape(1, 2, 2, 3)
    rows = rows_of(maps, unit=False)
    assert rows[0, 4].tolist() == [4, 10]
    assert rows_of(maps, unit=True).norm(dim=2).tolist() == [pytest.approx([1.0] * 6)]


def test_images_become_values_of_their_size() -> None:
    images = torch.full((1, 3, 8, 12), 51, dtype=torch.uint8)
    torch.testing.assert_close(resized(images, (6, 4)), torch.full((1, 3, 4, 6), 0.2))
