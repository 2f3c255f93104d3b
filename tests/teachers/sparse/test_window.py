"""The order of kernel offsets, and which windows there are."""

from __future__ import annotations

import pytest
import torch

from teachers.sparse.window import Window, kernel_index, kernel_offsets


def test_odd_kernels_run_x_fastest_around_the_center() -> None:
    offsets = kernel_offsets(3).tolist()
    assert offsets[:4] == [[-1, -1, -1], [0, -1, -1], [1, -1, -1], [-1, 0, -1]]
    assert offsets[13] == [0, 0, 0]


def test_even_kernels_run_z_fastest_from_the_corner() -> None:
    assert kernel_offsets(2).tolist()[:4] == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_each_offset_has_its_own_matrix(size: int) -> None:
    assert torch.equal(kernel_index(size, kernel_offsets(size)), torch.arange(size**3))


@pytest.mark.parametrize(
    "arguments",
    [(2, 1, False), (3, 2, False), (3, 3, False), (2, 4, False), (0, 1, False), (3, 1, True), (1, 1, True)],
)
def test_windows_that_libraries_disagree_on_are_refused(arguments: tuple[int, int, bool]) -> None:
    with pytest.raises(
        ValueError, match="Expected an odd kernel size with stride 1, or an even one equal to the stride"
    ):
        Window(*arguments)


def test_strides_multiply_down_and_divide_up() -> None:
    assert Window(3).output_stride(4) == 4
    assert Window(2, 2).output_stride(4) == 8
    assert Window(2, 2, transposed=True).output_stride(4) == 2
    with pytest.raises(ValueError, match="of stride 2 cannot start at tensor stride 1"):
        Window(2, 2, transposed=True).output_stride(1)
