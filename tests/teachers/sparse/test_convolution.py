"""Every sparse convolution does what the dense one does, where there are voxels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from teachers.sparse import plain
from teachers.sparse.grid import BackendError, Grid
from teachers.sparse.kernel_map import KernelMap
from teachers.sparse.layers import SparseConvolution
from teachers.sparse.level import Level
from teachers.sparse.plain import PlainBackend
from teachers.sparse.tensor import SparseTensor
from teachers.sparse.window import Window
from tests.teachers.sparse import dense

SEEDS = st.integers(0, 2**31)
CHANNELS = st.integers(1, 5)
FILLED = st.sampled_from([0.01, 0.1, 0.5, 1.0])


def assert_same(sparse: list[Tensor], reference: list[Tensor]) -> None:
    for ours, theirs in zip(sparse, reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * max(1.0, float(theirs.detach().abs().max())))


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, inputs=CHANNELS, outputs=CHANNELS, filled=FILLED, size=st.sampled_from([3, 5]))
def test_submanifold_is_the_dense_convolution_at_the_voxels(
    seed: int, inputs: int, outputs: int, filled: float, size: int
) -> None:
    cloud = dense.random_cloud(seed, channels=inputs, filled=filled)
    features = cloud.features.requires_grad_()
    kernel = dense.random_kernel(seed, size**3, inputs, outputs)
    grid = PlainBackend().open(cloud.coordinates)

    output = grid.convolve(features, kernel, 1, Window(size))
    whole = dense.convolve(dense.densify(cloud, features, cloud.coordinates, 1), kernel, size)
    reference = dense.read_back(cloud, whole, cloud.coordinates, 1)

    arguments = (seed, features, kernel)
    assert_same([output, *dense.gradients(output, *arguments)], [reference, *dense.gradients(reference, *arguments)])


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, inputs=CHANNELS, outputs=CHANNELS, filled=FILLED, size=st.sampled_from([2, 4]))
def test_strided_is_the_dense_convolution_wherever_a_block_is_occupied(
    seed: int, inputs: int, outputs: int, filled: float, size: int
) -> None:
    cloud = dense.random_cloud(seed, channels=inputs, filled=filled)
    features = cloud.features.requires_grad_()
    kernel = dense.random_kernel(seed, size**3, inputs, outputs)
    grid = PlainBackend().open(cloud.coordinates)

    output = grid.convolve(features, kernel, 1, Window(size, size))
    coarse = grid.level(size).coordinates
    whole = dense.convolve(dense.densify(cloud, features, cloud.coordinates, 1), kernel, size, stride=size)
    reference = dense.read_back(cloud, whole, coarse, size)

    blocks = torch.cat([cloud.coordinates[:, :1], torch.div(cloud.coordinates[:, 1:], size, rounding_mode="floor")], 1)
    assert len(coarse) == len(torch.unique(blocks, dim=0))
    arguments = (seed, features, kernel)
    assert_same([output, *dense.gradients(output, *arguments)], [reference, *dense.gradients(reference, *arguments)])


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, inputs=CHANNELS, outputs=CHANNELS, filled=FILLED)
def test_transposed_returns_to_the_voxels_that_the_strided_one_left(
    seed: int, inputs: int, outputs: int, filled: float
) -> None:
    cloud = dense.random_cloud(seed, channels=1, filled=filled)
    grid = PlainBackend().open(cloud.coordinates)
    grid.convolve(cloud.features, dense.random_kernel(seed, 8, 1, 1), 1, Window(2, 2))
    coarse = grid.level(2).coordinates
    features = dense.random_kernel(seed + 1, len(coarse), inputs)
    kernel = dense.random_kernel(seed, 8, inputs, outputs)

    output = grid.convolve(features, kernel, 2, Window(2, 2, transposed=True))
    whole = dense.convolve_transposed(dense.densify(cloud, features, coarse, 2), kernel, 2)
    reference = dense.read_back(cloud, whole, cloud.coordinates, 1)

    arguments = (seed, features, kernel)
    assert_same([output, *dense.gradients(output, *arguments)], [reference, *dense.gradients(reference, *arguments)])


@settings(deadline=None, max_examples=15)
@given(seed=SEEDS, filled=FILLED)
def test_a_small_unet_over_three_strides_is_the_dense_one(seed: int, filled: float) -> None:
    cloud = dense.random_cloud(seed, channels=2, filled=filled)
    features = cloud.features.requires_grad_()
    shapes = [(27, 2, 3), (8, 3, 4), (27, 4, 4), (8, 4, 5), (27, 5, 5), (8, 5, 3), (27, 7, 4), (8, 4, 2), (27, 2, 2)]
    kernels = [dense.random_kernel(seed + i, *shape) for i, shape in enumerate(shapes)]
    submanifold, down, up = Window(3), Window(2, 2), Window(2, 2, transposed=True)

    grid = PlainBackend().open(cloud.coordinates)
    x1 = grid.convolve(features, kernels[0], 1, submanifold)
    x2 = grid.convolve(grid.convolve(x1, kernels[1], 1, down), kernels[2], 2, submanifold)
    x4 = grid.convolve(grid.convolve(x2, kernels[3], 2, down), kernels[4], 4, submanifold)
    y2 = grid.convolve(torch.cat([grid.convolve(x4, kernels[5], 4, up), x2], 1), kernels[6], 2, submanifold)
    y1 = grid.convolve(grid.convolve(y2, kernels[7], 2, up), kernels[8], 1, submanifold)

    occupied = {
        s: dense.densify(cloud, x.detach()[:, :1] * 0 + 1, grid.level(s).coordinates, s)
        for s, x in ((1, x1), (2, x2), (4, x4))
    }
    d1 = dense.convolve(dense.densify(cloud, features, cloud.coordinates, 1), kernels[0], 3) * occupied[1]
    d2 = dense.convolve(dense.convolve(d1, kernels[1], 2, stride=2) * occupied[2], kernels[2], 3) * occupied[2]
    d4 = dense.convolve(dense.convolve(d2, kernels[3], 2, stride=2) * occupied[4], kernels[4], 3) * occupied[4]
    e2 = torch.cat([dense.convolve_transposed(d4, kernels[5], 2) * occupied[2], d2], 1)
    e2 = dense.convolve(e2, kernels[6], 3) * occupied[2]
    e1 = dense.convolve(dense.convolve_transposed(e2, kernels[7], 2) * occupied[1], kernels[8], 3)
    reference = dense.read_back(cloud, e1, cloud.coordinates, 1)

    inputs = (features, *kernels)
    assert_same([y1, *dense.gradients(y1, seed, *inputs)], [reference, *dense.gradients(reference, seed, *inputs)])


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS, inputs=CHANNELS, outputs=CHANNELS)
def test_pointwise_is_a_matrix_product(seed: int, inputs: int, outputs: int) -> None:
    cloud = dense.random_cloud(seed, channels=inputs)
    layer = SparseConvolution(inputs, outputs, size=1).double()
    assert layer.kernel.shape == (inputs, outputs)
    x = SparseTensor.open(cloud.features, cloud.coordinates, PlainBackend())

    output = layer(x)

    whole = dense.convolve(dense.densify(cloud, x.features, x.coordinates, 1), layer.kernel[None], 1)
    torch.testing.assert_close(output.features, dense.read_back(cloud, whole, x.coordinates, 1))
    assert output.stride == 1
    assert output.grid is x.grid


def test_gradients_agree_with_finite_differences() -> None:
    cloud = dense.random_cloud(3, channels=2, side=4, filled=0.3)
    grid = PlainBackend().open(cloud.coordinates)
    kernel = dense.random_kernel(1, 27, 2, 3)

    def convolve(features: Tensor, kernel: Tensor) -> Tensor:
        return grid.convolve(features, kernel, 1, Window(3))

    assert torch.autograd.gradcheck(convolve, (cloud.features.requires_grad_(), kernel))


def test_a_long_map_is_worked_off_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = dense.random_cloud(5, channels=3, filled=0.5)
    kernel = dense.random_kernel(5, 27, 3, 2)

    def run() -> list[Tensor]:
        features = cloud.features.clone().requires_grad_()
        output = PlainBackend().open(cloud.coordinates).convolve(features, kernel, 1, Window(3))
        return [output, *dense.gradients(output, 5, features, kernel)]

    whole = run()
    monkeypatch.setattr("teachers.sparse.pair_matmul._CPU_ROWS", 7)
    assert_same(run(), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_sums_in_float32(dtype: torch.dtype) -> None:
    cloud = dense.random_cloud(2, channels=16, filled=1.0)
    kernel = dense.random_kernel(2, 27, 16, 8)
    grid = PlainBackend().open(cloud.coordinates)
    exact = grid.convolve(cloud.features.to(dtype).double(), kernel.to(dtype).double(), 1, Window(3))

    output = grid.convolve(cloud.features.to(dtype), kernel.to(dtype), 1, Window(3))

    assert output.dtype == dtype
    error = (output.double() - exact).abs().max() / exact.abs().max()
    assert error < 4 * torch.finfo(dtype).eps


def test_autocast_convolves_in_its_type_and_returns_float32_gradients() -> None:
    cloud = dense.random_cloud(2, channels=4)
    features = cloud.features.float().requires_grad_()
    kernel = dense.random_kernel(2, 27, 4, 8).detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = PlainBackend().open(cloud.coordinates).convolve(features, kernel, 1, Window(3))
    assert output.dtype == torch.bfloat16
    assert [gradient.dtype for gradient in dense.gradients(output, 1, features, kernel)] == [torch.float32] * 2


def test_maps_are_made_once_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = plain.submanifold_map

    def counted(level: Level, stride: int, size: int) -> KernelMap:
        made.append(stride)
        return make(level, stride, size)

    monkeypatch.setattr(plain, "submanifold_map", counted)
    cloud = dense.random_cloud(2, channels=2)
    grid: Grid = PlainBackend().open(cloud.coordinates)
    for _ in range(3):
        grid.convolve(cloud.features, dense.random_kernel(1, 27, 2, 2), 1, Window(3))
    assert made == [1]


def test_no_voxels_give_no_features() -> None:
    grid = PlainBackend().open(torch.zeros(0, 4, dtype=torch.int32))
    features = torch.zeros(0, 2)
    assert grid.convolve(features, torch.zeros(27, 2, 3), 1, Window(3)).shape == (0, 3)
    assert grid.convolve(features, torch.zeros(8, 2, 3), 1, Window(2, 2)).shape == (0, 3)


def test_a_transposed_convolution_needs_the_strided_one_before_it() -> None:
    cloud = dense.random_cloud(2, channels=2)
    grid = PlainBackend().open(cloud.coordinates)
    with pytest.raises(BackendError, match="nothing to transpose: no 2³ convolution has led from stride 1 to 2"):
        grid.convolve(cloud.features, torch.zeros(8, 2, 2), 2, Window(2, 2, transposed=True))
    with pytest.raises(BackendError, match=r"no voxels of stride 4, only \[1\]"):
        grid.level(4)
