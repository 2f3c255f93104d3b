from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.synthetic.matrix import compress_floats, compress_ints
from tests.datalake.synthetic.scan import matrix


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30))
def test_integers_come_back_through_protobuf(values: list[int]) -> None:
    decoded = matrix(compress_ints(np.array(values).reshape(1, -1)), dataset_pb2.MatrixInt32)
    assert decoded.tolist() == [values]


def test_floats_come_back_through_protobuf() -> None:
    values = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    assert np.array_equal(matrix(compress_floats(values), dataset_pb2.MatrixFloat).astype(np.float32), values)
