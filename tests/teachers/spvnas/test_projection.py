"""Every cell shows the point that the camera sees there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake.sample import Lidar, Sample
from teachers.spvnas.projection import Projections, cell_points, place

IMAGE, GRID = (40, 60), (8, 10)


def random_lidar(seed: int, seen: int = 60, points: int = 100, depths: int = 12) -> Lidar:
    """Return `points` points, `seen` of which the camera sees, at few different depths so that there are ties."""
    random = torch.Generator().manual_seed(seed)
    uv = torch.rand(2, seen, generator=random) * torch.tensor([[IMAGE[1] + 4.0], [IMAGE[0] + 4.0]]) - 2
    return Lidar(
        points=torch.zeros(4, points),
        laser=torch.ones(points, dtype=torch.int8),
        semantic_class=None,
        pixel_point=torch.randperm(points, generator=random)[:seen].int(),
        pixel_uv=uv,
        pixel_depth_m=5 + torch.randint(0, depths, (seen,), generator=random) * 0.75,
    )


def everything(lidar: Lidar) -> torch.Tensor:
    """Return that every point takes part."""
    return torch.ones(lidar.points.shape[1], dtype=torch.bool)


def shown_by(
    lidar: Lidar, image: tuple[int, int], grid: tuple[int, int], *, seen: torch.Tensor, dilate: bool = False
) -> torch.Tensor:
    """Return int64 [h, w], the point that each cell of one image shows, of those that are `seen`."""
    kept = seen[lidar.pixel_point.long()]
    lidar = Lidar(
        lidar.points, lidar.laser, None, lidar.pixel_point[kept], lidar.pixel_uv[:, kept], lidar.pixel_depth_m[kept]
    )
    return cell_points(Projections.of([lidar], [0], [image], torch.device("cpu")), grid, dilate=dilate)[0]


def by_hand(lidar: Lidar, seen: torch.Tensor) -> dict[tuple[int, int], tuple[float, int]]:
    """Return (depth, point) of each cell that has one, one point after the other."""
    cells: dict[tuple[int, int], tuple[float, int]] = {}
    for point, (u, v), depth in zip(
        lidar.pixel_point.tolist(), lidar.pixel_uv.t().tolist(), lidar.pixel_depth_m.tolist(), strict=True
    ):
        if not (0 <= u < IMAGE[1] and 0 <= v < IMAGE[0] and seen[point]):
            continue
        cell = int(v * GRID[0] / IMAGE[0]), int(u * GRID[1] / IMAGE[1])
        cells[cell] = min(cells.get(cell, (torch.inf, -1)), (depth, point))
    return cells


def fill_by_hand(cells: dict[tuple[int, int], tuple[float, int]]) -> dict[tuple[int, int], tuple[float, int]]:
    """Return the cells dilated, one after the other."""
    filled = dict(cells)
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            around = [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            shown = sorted(cells[cell] for cell in around if cell in cells)
            if (row, column) in cells or not shown:
                continue
            near, far = shown[0][0], shown[-1][0]
            if far - near <= 2 and far - near <= 0.5 * near:
                filled[row, column] = shown[0]
    return filled


def as_map(cells: dict[tuple[int, int], tuple[float, int]]) -> torch.Tensor:
    """Return int64 [h, w]."""
    shown = torch.full(GRID, -1)
    for cell, (_, point) in cells.items():
        shown[cell] = point
    return shown


@given(st.integers(0, 10_000), st.sampled_from([0, 1, 15, 60, 400]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_it_agrees_with_doing_one_point_after_the_other(seed: int, count: int, dilate: bool) -> None:
    lidar = random_lidar(seed, seen=count, points=max(2 * count, 1))
    seen = torch.rand(lidar.points.shape[1], generator=torch.Generator().manual_seed(seed)) < 0.8
    cells = by_hand(lidar, seen)
    expected = as_map(fill_by_hand(cells) if dilate else cells)
    assert torch.equal(shown_by(lidar, IMAGE, GRID, seen=seen, dilate=dilate), expected)


@given(st.integers(0, 10_000), st.booleans())
@settings(deadline=None, max_examples=30)
def test_the_order_of_the_projections_does_not_matter(seed: int, dilate: bool) -> None:
    lidar = random_lidar(seed, depths=3)
    order = torch.randperm(len(lidar.pixel_point), generator=torch.Generator().manual_seed(seed))
    shuffled = Lidar(
        lidar.points,
        lidar.laser,
        None,
        lidar.pixel_point[order],
        lidar.pixel_uv[:, order],
        lidar.pixel_depth_m[order],
    )
    seen = everything(lidar)
    assert torch.equal(
        shown_by(lidar, IMAGE, GRID, seen=seen, dilate=dilate),
        shown_by(shuffled, IMAGE, GRID, seen=seen, dilate=dilate),
    )


def _round_trip(sample: Sample, grid: tuple[int, int], shuffle: bool) -> torch.Tensor:
    """Return how far, in cells [2, n], points arrive from where they belong, if each one's feature is its (u, v)."""
    lidar = sample.lidar
    assert lidar is not None
    height, width = sample.image.shape[1:]
    points = lidar.points.shape[1]
    features = torch.full((points, 2), torch.nan)
    features[lidar.pixel_point.long()] = lidar.pixel_uv.t()
    if shuffle:
        features = features[lidar.pixel_point.long()][torch.randperm(points) % len(lidar.pixel_point)]
    shown = shown_by(lidar, (height, width), grid, seen=everything(lidar))
    ((u, v),), valid = place(features, shown[None])
    row, column = torch.meshgrid(torch.arange(grid[0]) + 0.5, torch.arange(grid[1]) + 0.5, indexing="ij")
    apart = torch.stack([u * grid[1] / width - column, v * grid[0] / height - row])
    assert valid.float().mean() > 0.05
    return apart[:, valid[0, 0]].abs()


@pytest.mark.parametrize("grid", [(64, 96), (16, 24), (11, 25)])
def test_points_arrive_where_they_are_projected_to(drive_samples: list[Sample], grid: tuple[int, int]) -> None:
    for sample in drive_samples:
        assert _round_trip(sample, grid, shuffle=False).max() <= 0.5 + 1e-4


def test_a_scrambled_index_is_noticed_by_that_test(drive_samples: list[Sample]) -> None:
    apart = _round_trip(drive_samples[0], (16, 24), shuffle=True)
    assert (apart <= 0.5 + 1e-4).all(0).float().mean() < 0.2


def test_the_nearest_point_wins() -> None:
    lidar = Lidar(
        torch.zeros(4, 3),
        torch.ones(3, dtype=torch.int8),
        None,
        torch.tensor([2, 1, 0], dtype=torch.int32),
        torch.tensor([[7.0, 8.0, 9.0], [6.0, 7.0, 8.0]]),
        torch.tensor([30.0, 10.0, 20.0]),
    )
    shown = shown_by(lidar, IMAGE, GRID, seen=everything(lidar))
    assert shown[1, 1] == 1
    assert (shown >= 0).sum() == 1
    unseen = shown_by(lidar, IMAGE, GRID, seen=torch.tensor([True, False, True]))
    assert unseen[1, 1] == 0


@pytest.mark.parametrize(
    ("depths_m", "fills"),
    [((10.0, 11.9), True), ((10.0, 12.1), False), ((2.0, 2.9), True), ((2.0, 3.1), False), ((40.0, 45.0), False)],
)
def test_between_two_surfaces_a_cell_stays_empty(depths_m: tuple[float, float], fills: bool) -> None:
    lidar = Lidar(
        torch.zeros(4, 2),
        torch.ones(2, dtype=torch.int8),
        None,
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([[9.0, 21.0], [7.5, 7.5]]),  # columns 1 and 3
        torch.tensor(depths_m),
    )
    shown = shown_by(lidar, IMAGE, GRID, seen=everything(lidar), dilate=True)
    assert shown[1].tolist()[:5] == [0, 0, 0 if fills else -1, 1, 1]


def test_dilation_changes_no_cell_that_has_a_point(drive_samples: list[Sample]) -> None:
    lidar = drive_samples[0].lidar
    assert lidar is not None
    plain, dilated = (
        shown_by(lidar, (64, 96), (64, 96), seen=everything(lidar), dilate=dilate) for dilate in (False, True)
    )
    assert torch.equal(dilated[plain >= 0], plain[plain >= 0])
    assert (dilated >= 0).sum() > 1.5 * (plain >= 0).sum()


def test_placed_features_are_their_points() -> None:
    features = torch.arange(6.0).view(3, 2)
    values, valid = place(features, torch.tensor([[[2, -1], [0, 0]], [[-1, -1], [1, -1]]]))
    assert values.tolist() == [[[[4, 0], [0, 0]], [[5, 0], [1, 1]]], [[[0, 0], [2, 0]], [[0, 0], [3, 0]]]]
    assert valid.tolist() == [[[[True, False], [True, True]]], [[[False, False], [True, False]]]]


@pytest.mark.parametrize("dilate", [False, True])
def test_images_of_a_batch_do_not_mix(dilate: bool) -> None:
    lidars = [random_lidar(seed, seen=count) for seed, count in enumerate((60, 0, 90, 5))]
    # Two images of one frame, another size, and frames whose points are counted on.
    sizes, starts = [IMAGE, IMAGE, (80, 120), IMAGE], [0, 100, 100, 200]
    together = cell_points(Projections.of(lidars, starts, sizes, torch.device("cpu")), GRID, dilate=dilate)
    for lidar, size, start, shown in zip(lidars, sizes, starts, together, strict=True):
        alone = shown_by(lidar, size, GRID, seen=everything(lidar), dilate=dilate)
        assert torch.equal(shown, torch.where(alone >= 0, alone + start, alone))
