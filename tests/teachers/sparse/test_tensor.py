"""Sparse tensors meet only on the same voxels; layers keep them."""

from __future__ import annotations

import pytest
import torch

from teachers.sparse.layers import SparseBatchNorm, SparseConvolution, SparseReLU
from teachers.sparse.plain import PlainBackend
from teachers.sparse.tensor import SparseTensor
from tests.teachers.sparse import dense


def random_tensor(channels: int = 3) -> SparseTensor:
    cloud = dense.random_cloud(1, channels=channels)
    return SparseTensor.open(cloud.features.float(), cloud.coordinates, PlainBackend())


def test_rows_keep_the_order_they_came_in() -> None:
    cloud = dense.random_cloud(1, channels=3)
    x = SparseTensor.open(cloud.features, cloud.coordinates, PlainBackend())
    assert torch.equal(x.coordinates, cloud.coordinates)
    assert x.coordinates.dtype == torch.int32


def test_sums_and_concatenations_need_the_same_voxels() -> None:
    x = random_tensor()
    assert torch.equal((x + x).features, 2 * x.features)
    assert x.concatenate(x).features.shape == (len(x.features), 6)
    coarse = SparseConvolution(3, 3, size=2, stride=2)(x)
    with pytest.raises(ValueError, match="got strides 1, 2 of one pass"):
        x + coarse
    with pytest.raises(ValueError, match="got strides 1, 1 of two passes"):
        x.concatenate(random_tensor())


def test_features_must_be_one_row_a_voxel() -> None:
    with pytest.raises(ValueError, match=r"Expected features \[5, C\], got: \[4, 2\]"):
        SparseTensor.open(torch.zeros(4, 2), torch.zeros(5, 4, dtype=torch.int32), PlainBackend())


def test_batch_norm_and_relu_are_those_of_torch() -> None:
    x = random_tensor()
    norm = SparseBatchNorm(3)
    expected = torch.nn.functional.batch_norm(x.features, None, None, training=True)
    torch.testing.assert_close(norm(x).features, expected)
    torch.testing.assert_close(SparseReLU()(norm(x)).features, expected.clamp(min=0))


def test_convolution_prints_its_shape() -> None:
    assert "3, 5, Window(size=2, stride=2, transposed=True)" in repr(
        SparseConvolution(3, 5, size=2, stride=2, transposed=True)
    )
