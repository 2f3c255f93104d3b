"""torchsparse, where it is installed, gives what plain gives; its two versions' conventions are translated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from teachers.sparse import torchsparse_backend
from teachers.sparse.grid import BackendError, Grid
from teachers.sparse.plain import PlainBackend
from teachers.sparse.torchsparse_backend import TorchsparseBackend, open_grid
from teachers.sparse.window import Window
from tests.teachers.sparse import dense, fake_torchsparse

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OBSTACLE = TorchsparseBackend().obstacle(DEVICE)
needs_torchsparse = pytest.mark.skipif(OBSTACLE is not None, reason=f"torchsparse cannot run here: {OBSTACLE}")

SUBMANIFOLD, DOWN, UP = Window(3), Window(2, 2), Window(2, 2, transposed=True)
SHAPES = [(27, 3, 4), (8, 4, 5), (27, 5, 5), (8, 5, 6), (8, 6, 5), (27, 10, 4), (8, 4, 3), (27, 3, 4)]


def small_unet(grid: Grid, features: Tensor, kernels: list[Tensor]) -> Tensor:
    """Return the voxels' features after two strides down and up, through every kind of window."""
    x1 = grid.convolve(features, kernels[0], 1, SUBMANIFOLD)
    x2 = grid.convolve(grid.convolve(x1, kernels[1], 1, DOWN), kernels[2], 2, SUBMANIFOLD)
    x4 = grid.convolve(x2, kernels[3], 2, DOWN)
    y2 = torch.cat([grid.convolve(x4, kernels[4], 4, UP), x2], 1)
    y1 = grid.convolve(grid.convolve(y2, kernels[5], 2, SUBMANIFOLD), kernels[6], 2, UP)
    return grid.convolve(y1, kernels[7], 1, SUBMANIFOLD)


def arguments(seed: int, device: torch.device) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return features, coordinates and kernels, on voxels that are partly below zero."""
    cloud = dense.random_cloud(seed, channels=3, side=9)
    kernels = [dense.random_kernel(seed + i, *shape).detach().float().to(device) for i, shape in enumerate(SHAPES)]
    return cloud.features.float().to(device), cloud.coordinates.to(device), kernels


def by_position(grid: Grid, features: Tensor, stride: int) -> Tensor:
    """Return features in ascending order of the voxels."""
    level = grid.level(stride)
    return features if level.rows is None else features[level.rows]


@needs_torchsparse
@pytest.mark.parametrize("seed", range(4))
def test_torchsparse_gives_what_plain_gives(seed: int) -> None:
    features, coordinates, kernels = arguments(seed, DEVICE)
    with torch.no_grad():
        theirs = small_unet(TorchsparseBackend().open(coordinates), features, kernels)
        ours = small_unet(PlainBackend().open(coordinates), features, kernels)
    tolerance = 1e-4 if DEVICE.type == "cpu" else 1e-2
    torch.testing.assert_close(theirs, ours, rtol=tolerance, atol=tolerance * float(ours.abs().max()))


@needs_torchsparse
@pytest.mark.skipif(DEVICE.type != "cuda", reason="torchsparse has gradients on CUDA alone, and there is no GPU")
def test_torchsparse_learns_what_plain_learns() -> None:
    features, coordinates, kernels = arguments(0, DEVICE)
    inputs = [tensor.requires_grad_() for tensor in (features, *kernels)]
    both = [
        torch.autograd.grad(small_unet(backend.open(coordinates), features, kernels).square().sum(), inputs)
        for backend in (TorchsparseBackend(), PlainBackend())
    ]
    for theirs, ours in zip(*both, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=2e-2, atol=2e-2 * float(ours.abs().max()))


@needs_torchsparse
@pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU torchsparse has gradients")
def test_torchsparse_says_that_it_has_no_gradients_on_the_cpu() -> None:
    features, coordinates, kernels = arguments(0, DEVICE)
    grid = TorchsparseBackend().open(coordinates)
    with pytest.raises(BackendError, match=r"has no gradients on the CPU; wrap the call in torch.no_grad\(\)"):
        grid.convolve(features, kernels[0].requires_grad_(), 1, SUBMANIFOLD)


@pytest.mark.parametrize("seed", range(4))
def test_the_conventions_of_2_1_are_translated(seed: int) -> None:
    features, coordinates, kernels = arguments(seed, torch.device("cpu"))
    theirs = open_grid(fake_torchsparse, coordinates)
    ours = PlainBackend().open(coordinates)

    torch.testing.assert_close(small_unet(theirs, features, kernels), small_unet(ours, features, kernels))

    for stride in (1, 2, 4):
        assert torch.equal(theirs.level(stride).keys, ours.level(stride).keys)
    halves = [by_position(grid, grid.convolve(features, kernels[1][:, :3], 1, DOWN), 2) for grid in (theirs, ours)]
    torch.testing.assert_close(*halves)
    with pytest.raises(BackendError, match="no voxels of stride 8"):
        theirs.level(8)
    with pytest.raises(BackendError, match="no 4³ convolution has led from stride 1 to 4"):
        theirs.convolve(features, kernels[0], 4, Window(4, 4, transposed=True))


@pytest.mark.parametrize("end", [63, 62, 1023])
def test_voxels_at_the_border_keep_their_neighbors(end: int) -> None:
    features, coordinates, kernels = arguments(0, torch.device("cpu"))
    coordinates[:, 1:] += end - coordinates[:, 1:].amax(0)
    theirs, ours = open_grid(fake_torchsparse, coordinates), PlainBackend().open(coordinates)
    torch.testing.assert_close(small_unet(theirs, features, kernels), small_unet(ours, features, kernels))


def wide_clouds(clouds: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return features, coordinates, cloud by cloud, and kernels: a few voxels in opposite corners of a city."""
    _, coordinates, kernels = arguments(1, torch.device("cpu"))
    corners = coordinates[:50, 1:]
    corners[25:] += torch.tensor([2900, 1900, 900], dtype=torch.int32)
    batch = torch.arange(clouds, dtype=torch.int32).repeat_interleave(len(corners))
    coordinates = torch.cat([batch[:, None], corners.repeat(clouds, 1)], 1).unique(dim=0)
    random = torch.Generator().manual_seed(1)
    return torch.randn(len(coordinates), 3, generator=random), coordinates, kernels


@pytest.mark.parametrize("clouds", [3, 7])
def test_more_clouds_than_2_1_can_count_go_in_several_passes(clouds: int) -> None:
    features, coordinates, kernels = wide_clouds(clouds)
    theirs, ours = open_grid(fake_torchsparse, coordinates), PlainBackend().open(coordinates)
    torch.testing.assert_close(small_unet(theirs, features, kernels), small_unet(ours, features, kernels))
    for stride in (1, 2, 4):
        assert torch.equal(theirs.level(stride).keys, ours.level(stride).keys)


def test_what_2_1_cannot_count_is_refused() -> None:
    _, coordinates, _ = wide_clouds(7)
    with pytest.raises(BackendError, match="can count 2 such clouds at once: give the voxels of each cloud one after"):
        open_grid(fake_torchsparse, coordinates.flip(0))
    with pytest.raises(BackendError, match=r"clouds of up to \d+ x \d+ x \d+ voxels are more than torchsparse 2.1.0"):
        open_grid(fake_torchsparse, coordinates * torch.tensor([1, 3, 3, 3], dtype=torch.int32))


def test_2_1_does_not_round_to_tf32_unless_torch_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_torchsparse.backends, "allow_tf32", True)
    features, coordinates, kernels = arguments(0, torch.device("cpu"))
    open_grid(fake_torchsparse, coordinates).convolve(features, kernels[0], 1, SUBMANIFOLD)
    assert fake_torchsparse.backends.allow_tf32 is False


@pytest.fixture
def _two_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torchsparse_backend._load.cache_clear()

    def import_module(name: str) -> Any:
        return fake_torchsparse if name == "torchsparse" else None

    monkeypatch.setattr(torchsparse_backend.importlib, "import_module", import_module)
    yield
    torchsparse_backend._load.cache_clear()


@pytest.mark.usefixtures("_two_one")
def test_2_1_is_for_cuda_alone() -> None:
    assert TorchsparseBackend().obstacle(torch.device("cuda")) is None
    assert TorchsparseBackend().obstacle(torch.device("cpu")) == (
        "torchsparse 2.1.0 runs on CUDA alone; move the model there"
    )
    assert TorchsparseBackend().obstacle(torch.device("mps")) == "torchsparse runs on CPU and CUDA, not on mps"
