"""Triton gives what plain gives, and the dense convolution; without a GPU its kernel is interpreted.

Triton has to be told so before it is imported: then one test runs the others in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from teachers.sparse.grid import BackendError, Grid
from teachers.sparse.plain import PlainBackend
from teachers.sparse.triton_backend import TritonBackend
from teachers.sparse.window import Window
from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.voxels import voxelize_scans
from tests.teachers.sparse import dense
from tests.teachers.sparse.test_torchsparse_backend import arguments, by_position, small_unet
from tests.teachers.spvnas.clouds import small_scan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="runs in a process of its own, with TRITON_INTERPRET=1"
)
# The interpreter knows no bfloat16.
HALF = torch.float16 if DEVICE.type == "cpu" else torch.bfloat16
BACKEND = TritonBackend()


@pytest.mark.integration
@pytest.mark.skipif(DEVICE.type != "cpu" or INTERPRETED, reason="they run here")
def test_interpreted_all_of_these_tests_pass() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=Path(__file__).parents[3], capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout
    assert " 1 skipped" in done.stdout.splitlines()[-1]


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    assert torch.backends.cuda.matmul.allow_tf32 is False


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-5) -> None:
    for left, right in zip(ours, theirs, strict=True):
        largest = max(1.0, float(right.detach().abs().max()) if right.numel() else 0.0)
        torch.testing.assert_close(left.cpu().double(), right.cpu().double(), rtol=tolerance, atol=tolerance * largest)


@needs_triton
def test_a_small_unet_and_its_gradients_are_those_of_plain() -> None:
    features, coordinates, kernels = arguments(0, DEVICE)
    coordinates, features = coordinates[:60], features[:60]
    inputs = [tensor.requires_grad_() for tensor in (features, *kernels)]
    grids: list[Grid] = [BACKEND.open(coordinates), PlainBackend().open(coordinates)]
    outputs = [small_unet(grid, features, kernels) for grid in grids]
    ours, theirs = ([output, *torch.autograd.grad(output.square().mean(), inputs)] for output in outputs)
    assert_same(ours, theirs)
    for stride in (1, 2, 4):
        assert torch.equal(grids[0].level(stride).keys, grids[1].level(stride).keys)


@needs_triton
@pytest.mark.parametrize(("size", "inputs", "outputs"), [(3, 40, 70), (5, 2, 3)])
def test_submanifold_is_the_dense_convolution_at_the_voxels(size: int, inputs: int, outputs: int) -> None:
    # More than 64 voxels are several programs' rows, 40 and 70 channels several blocks of each kind.
    cloud = dense.random_cloud(1, channels=inputs, side=4, filled=0.6)
    kernel = dense.random_kernel(2, size**3, inputs, outputs)
    whole = dense.convolve(dense.densify(cloud, cloud.features, cloud.coordinates, 1), kernel, size)
    grid = BACKEND.open(cloud.coordinates.to(DEVICE))
    with torch.no_grad():
        output = grid.convolve(cloud.features.float().to(DEVICE), kernel.float().to(DEVICE), 1, Window(size))
    assert len(output) > 64
    assert_same([output], [dense.read_back(cloud, whole, cloud.coordinates, 1)])


@needs_triton
@pytest.mark.parametrize("size", [2, 4])
def test_strided_and_back_is_the_dense_convolution(size: int) -> None:
    cloud = dense.random_cloud(3, channels=4, side=4)
    down, up = dense.random_kernel(4, size**3, 4, 5), dense.random_kernel(5, size**3, 5, 3)
    grid = BACKEND.open(cloud.coordinates.to(DEVICE))
    coarse = grid.convolve(cloud.features.float().to(DEVICE), down.float().to(DEVICE), 1, Window(size, size))
    fine = grid.convolve(coarse, up.float().to(DEVICE), size, Window(size, size, transposed=True))
    whole = dense.convolve(dense.densify(cloud, cloud.features, cloud.coordinates, 1), down, size, stride=size)
    places = grid.level(size).coordinates.cpu()
    values = dense.read_back(cloud, whole, places, size)
    back = dense.convolve_transposed(dense.densify(cloud, values, places, size), up, size)
    assert_same([coarse, fine], [values, dense.read_back(cloud, back, cloud.coordinates, 1)])


@needs_triton
def test_autocast_convolves_in_its_type_and_sums_in_float32() -> None:
    cloud = dense.random_cloud(2, channels=8, side=4, filled=0.6)
    features = cloud.features.float().to(DEVICE)
    kernel = dense.random_kernel(2, 27, 8, 16).detach().float().to(DEVICE).requires_grad_()
    grid = BACKEND.open(cloud.coordinates.to(DEVICE))
    with torch.autocast(DEVICE.type, HALF):
        output = grid.convolve(features, kernel, 1, Window(3))
    exact = PlainBackend().open(cloud.coordinates.to(DEVICE))
    expected = exact.convolve(features.to(HALF).double(), kernel.detach().to(HALF).double(), 1, Window(3))
    assert output.dtype == HALF
    error = (output.double() - expected).abs().max() / expected.abs().max()
    assert error < 2 * torch.finfo(HALF).eps
    (gradient,) = torch.autograd.grad(output.float().sum(), kernel)
    assert gradient.dtype == torch.float32


@needs_triton
def test_a_whole_network_answers_as_on_plain() -> None:
    torch.manual_seed(0)
    config = NetworkConfig.spvcnn(0.1, classes=5)
    networks = [SPVCNN(config, backend).eval().to(DEVICE) for backend in ("triton", "plain")]
    networks[1].load_state_dict(networks[0].state_dict())
    voxels = voxelize_scans([small_scan(1, points=30), small_scan(2, points=20)], 5.0, DEVICE)
    with torch.no_grad():
        ours, theirs = (each(voxels.features, voxels.positions, voxels.batch) for each in networks)
    assert_same([ours.logits, ours.features], [theirs.logits, theirs.features], 1e-4)


@needs_triton
def test_voxels_in_any_order_keep_it() -> None:
    cloud = dense.random_cloud(7, channels=3, side=4)
    features, kernel = cloud.features.float().to(DEVICE), dense.random_kernel(7, 27, 3, 2).detach().float().to(DEVICE)
    outputs = [by_position(grid, grid.convolve(features[order], kernel, 1, Window(3)), 1) for order, grid in (
        (order, BACKEND.open(cloud.coordinates[order].to(DEVICE)))
        for order in (torch.arange(len(features)), torch.randperm(len(features)))
    )]  # fmt: skip
    assert_same(outputs[:1], outputs[1:])


@needs_triton
def test_no_voxels_give_no_features() -> None:
    grid = BACKEND.open(torch.zeros(0, 4, dtype=torch.int32, device=DEVICE))
    features = torch.zeros(0, 2, device=DEVICE)
    assert grid.convolve(features, torch.zeros(27, 2, 3, device=DEVICE), 1, Window(3)).shape == (0, 3)
    assert grid.convolve(features, torch.zeros(8, 2, 3, device=DEVICE), 1, Window(2, 2)).shape == (0, 3)


@needs_triton
def test_what_it_cannot_do_it_says() -> None:
    cloud = dense.random_cloud(2, channels=2)
    grid = BACKEND.open(cloud.coordinates.to(DEVICE))
    features, kernel = cloud.features.to(DEVICE), torch.zeros(8, 2, 2, device=DEVICE)
    with pytest.raises(BackendError, match="nothing to transpose: no 2³ convolution has led from stride 1 to 2"):
        grid.convolve(features.float(), kernel, 2, Window(2, 2, transposed=True))
    with pytest.raises(BackendError, match=r"no voxels of stride 4, only \[1\]"):
        grid.level(4)
    with pytest.raises(BackendError, match=r"float32, bfloat16 or float16, not torch.float64 and .*use 'plain'"):
        grid.convolve(features, kernel, 1, Window(2, 2))
