"""Metres and what stands for them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student.depth import decode_depth, encode_depth


@given(depth_m=st.floats(0, 75), max_depth_m=st.floats(75, 200))
def test_decoding_undoes_encoding(depth_m: float, max_depth_m: float) -> None:
    predicted = encode_depth(torch.tensor([depth_m]), max_depth_m)
    assert 0 <= float(predicted) <= 1
    assert float(decode_depth(predicted, max_depth_m)) == pytest.approx(depth_m, rel=1e-4, abs=1e-4)


@given(depth_m=st.floats(75, 1e6))
def test_beyond_the_largest_depth_the_largest_is_told(depth_m: float) -> None:
    assert float(decode_depth(encode_depth(torch.tensor(depth_m), 75.0), 75.0)) == pytest.approx(75)


@given(predicted=st.floats(-10, 10))
def test_whatever_a_network_tells_is_a_depth(predicted: float) -> None:
    assert 0 <= float(decode_depth(torch.tensor(predicted), 75.0)) <= 75.01


def test_the_numbers_are_the_papers() -> None:
    # Half the range is told as 0.73: near objects get the larger part of it.
    assert float(encode_depth(torch.tensor(37.5), 75.0)) == pytest.approx(0.5 ** (1 / 2.2))
    assert bool(encode_depth(torch.tensor(torch.nan), 75.0).isnan())
