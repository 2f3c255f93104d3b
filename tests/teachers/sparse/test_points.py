"""Features travel between points and voxels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from teachers.sparse.level import CoordinateError
from teachers.sparse.plain import PlainBackend
from teachers.sparse.points import Points
from teachers.sparse.tensor import SparseTensor
from teachers.sparse.window import Window

SEEDS = st.integers(0, 2**31)


def random_points(seed: int, *, count: int = 60, side: float = 6.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return features [P, 3], positions [P, 3] around the origin, batch [P]."""
    random = torch.Generator().manual_seed(seed)
    positions = (torch.rand(count, 3, generator=random) - 0.5) * side
    batch = torch.randint(0, 2, (count,), generator=random)
    return torch.randn(count, 3, generator=random, dtype=torch.float64), positions, batch


def open_to_stride(points: Points, stride: int) -> None:
    """Lead the pass down to `stride`."""
    reached = 1
    while reached < stride:
        rows = len(points.grid.level(reached))
        points.grid.convolve(torch.zeros(rows, 1), torch.zeros(8, 1, 1), reached, Window(2, 2))
        reached *= 2


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.sampled_from([1, 2, 4]))
def test_voxels_hold_the_mean_of_their_points(seed: int, stride: int) -> None:
    features, positions, batch = random_points(seed)
    points = Points(positions, batch, PlainBackend())
    open_to_stride(points, stride)

    voxels = points.voxelize(features, stride)

    for voxel, mean in zip(voxels.coordinates, voxels.features, strict=True):
        inside = (batch == voxel[0]) & (torch.div(positions, stride).floor() * stride == voxel[1:]).all(1)
        torch.testing.assert_close(mean, features[inside].mean(0))


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.sampled_from([1, 2, 4]))
def test_nearest_gives_the_mean_back_and_the_mean_stays(seed: int, stride: int) -> None:
    features, positions, batch = random_points(seed)
    points = Points(positions, batch, PlainBackend())
    open_to_stride(points, stride)
    voxels = points.voxelize(features, stride)

    again = points.voxelize(points.devoxelize(voxels, "nearest"), stride)

    torch.testing.assert_close(again.features, voxels.features)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.sampled_from([1, 2, 4]))
def test_trilinear_weights_sum_to_one(seed: int, stride: int) -> None:
    _, positions, batch = random_points(seed)
    points = Points(positions, batch, PlainBackend())
    open_to_stride(points, stride)
    ones = torch.ones(len(points.grid.level(stride)), 2, dtype=torch.float64)

    felt = points.devoxelize(SparseTensor(ones, stride, points.grid))

    torch.testing.assert_close(felt, torch.ones(len(points), 2, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.sampled_from([1, 2]))
def test_trilinear_repeats_a_linear_field_among_full_voxels(seed: int, stride: int) -> None:
    random = torch.Generator().manual_seed(seed)
    full = torch.cartesian_prod(*[torch.arange(-4, 5)] * 3)
    inner = (torch.rand(20, 3, generator=random) - 0.5) * 4
    points = Points(torch.cat([full, inner]), torch.zeros(len(full) + 20), PlainBackend())
    open_to_stride(points, stride)
    direction = torch.randn(3, generator=random, dtype=torch.float64)
    field = points.grid.level(stride).coordinates[:, 1:].double() @ direction

    felt = points.devoxelize(SparseTensor(field[:, None], stride, points.grid))

    torch.testing.assert_close(felt[-20:, 0], inner.double() @ direction, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_permuting_the_points_permutes_what_they_feel(seed: int) -> None:
    features, positions, batch = random_points(seed)
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
    felt = []
    for rows in (torch.arange(len(order)), order):
        points = Points(positions[rows], batch[rows], PlainBackend())
        felt.append(points.devoxelize(points.voxelize(features[rows], 1)))
    torch.testing.assert_close(felt[1], felt[0][order])


def test_clouds_do_not_feel_each_other() -> None:
    features, positions, _ = random_points(1)
    together = Points(positions.repeat(2, 1), torch.arange(2).repeat_interleave(len(positions)), PlainBackend())
    felt = together.devoxelize(together.voxelize(torch.cat([features, features + 1]), 1))
    torch.testing.assert_close(felt[len(positions) :], felt[: len(positions)] + 1)


def test_gradients_agree_with_finite_differences() -> None:
    features, positions, batch = random_points(1, count=12, side=3)
    points = Points(positions, batch, PlainBackend())

    def there_and_back(features: Tensor) -> Tensor:
        return points.devoxelize(points.voxelize(features, 1))

    assert torch.autograd.gradcheck(there_and_back, (features.requires_grad_(),))


def test_a_crowded_voxels_mean_survives_float16() -> None:
    points = Points(torch.zeros(5000, 3), torch.zeros(5000), PlainBackend())
    mean = points.voxelize(torch.full((5000, 1), 100, dtype=torch.float16), 1).features
    assert mean.dtype == torch.float16
    assert mean.tolist() == [[100.0]]


def test_a_point_a_hair_below_its_voxels_border_still_feels_its_voxel() -> None:
    points = Points(torch.tensor([[-1e-9, -1e-9, -1e-9]]), torch.zeros(1), PlainBackend())
    felt = points.devoxelize(points.voxelize(torch.tensor([[3.0]]), 1))
    assert felt.tolist() == [[3.0]]


@pytest.mark.parametrize("position", [float("nan"), float("inf"), 1e9])
def test_points_beyond_the_coordinates_are_refused(position: float) -> None:
    with pytest.raises(CoordinateError, match="Expected voxels within"):
        Points(torch.tensor([[0.0, position, 0.0]]), torch.zeros(1), PlainBackend())


def test_tensors_of_another_pass_are_refused() -> None:
    features, positions, batch = random_points(1)
    one, two = Points(positions, batch, PlainBackend()), Points(positions, batch, PlainBackend())
    with pytest.raises(ValueError, match="another pass"):
        one.devoxelize(two.voxelize(features, 1))


def test_no_points_feel_nothing() -> None:
    points = Points(torch.zeros(0, 3), torch.zeros(0), PlainBackend())
    voxels = points.voxelize(torch.zeros(0, 2), 1)
    assert points.devoxelize(voxels).shape == (0, 2)
    assert points.devoxelize(voxels, "nearest").shape == (0, 2)
