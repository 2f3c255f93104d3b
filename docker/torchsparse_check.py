"""The last step of the CUDA image: torchsparse is imported and convolves, here on the CPU, as the plain backend does.

An extension that was compiled for another torch does not import, or computes something else.
"""

from __future__ import annotations

import torch

from teachers.sparse.grid import Grid
from teachers.sparse.plain import PlainBackend
from teachers.sparse.torchsparse_backend import TorchsparseBackend
from teachers.sparse.window import Window

_CPU = torch.device("cpu")
_CUDA = torch.device("cuda")
_CHANNELS = 8


@torch.no_grad()
def check() -> float:
    """Return the largest difference between the backends. Raises RuntimeError or AssertionError where they disagree."""
    theirs = TorchsparseBackend()
    # The first is asked of the CPU, where the convolution runs; the second only of what has been compiled.
    for device in (_CPU, _CUDA):
        if obstacle := theirs.obstacle(device):
            raise RuntimeError(obstacle)
    generator = torch.Generator().manual_seed(0)
    coordinates = torch.unique(torch.randint(-12, 12, (2000, 4), generator=generator), dim=0)
    coordinates[:, 0] = coordinates[:, 0] % 2
    coordinates = torch.unique(coordinates, dim=0).int()
    features = torch.randn(len(coordinates), _CHANNELS, generator=generator)
    kernels = [torch.randn(volume, _CHANNELS, _CHANNELS, generator=generator) for volume in (27, 8, 27)]

    def convolve(grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        fine = grid.convolve(features, kernels[0], 1, Window(3))
        coarse = grid.convolve(fine, kernels[1], 1, Window(2, 2))
        level = grid.level(2)
        # The backends keep coarse voxels in orders of their own.
        order = slice(None) if level.rows is None else level.rows
        return fine, grid.convolve(coarse, kernels[2], 2, Window(3))[order]

    difference = 0.0
    for ours, other in zip(convolve(PlainBackend().open(coordinates)), convolve(theirs.open(coordinates)), strict=True):
        torch.testing.assert_close(other, ours, rtol=1e-4, atol=1e-4 * float(ours.abs().max()))
        difference = max(difference, float((other - ours).abs().max()))
    return difference


if __name__ == "__main__":
    print(f"torchsparse convolves as the plain backend does: largest difference {check():.1e}")
