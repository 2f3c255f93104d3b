"""Compressed matrices, against protobuf's own serialization of the official messages."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
from google.protobuf.internal.encoder import _VarintBytes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from datalake.sources.waymo_v1.matrix import (
    MAX_MATRIX_BYTES,
    MatrixError,
    decode_float_matrix,
    decode_int_matrix,
    decode_varints,
)
from datalake.sources.waymo_v1.protos import dataset_pb2
from tests.frames import float_matrix, int_matrix

_BOUNDED = settings(max_examples=150, deadline=None, derandomize=True)
_SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6)


@_BOUNDED
@given(hnp.arrays(np.float32, _SHAPES))
def test_floats_come_back_bit_by_bit(values: NDArray[np.float32]) -> None:
    decoded = decode_float_matrix(float_matrix(values))
    assert decoded.shape == values.shape
    np.testing.assert_array_equal(decoded, values)


@_BOUNDED
@given(hnp.arrays(np.int32, _SHAPES))
def test_integers_come_back_negative_ones_too(values: NDArray[np.int32]) -> None:
    decoded = decode_int_matrix(int_matrix(values))
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, values)


@pytest.mark.parametrize("highest", [100, 1 << 13, 1 << 20], ids=["one byte", "two bytes", "three bytes"])
@_BOUNDED
@given(data=st.data())
def test_varints_of_each_width_come_back(highest: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, highest), max_size=50))
    packed = np.frombuffer(b"".join(_VarintBytes(value) for value in values), np.uint8)
    assert decode_varints(packed).tolist() == values


@_BOUNDED
@given(st.binary(max_size=40))
def test_noise_is_as_many_integers_as_it_has_last_bytes_or_refused(noise: bytes) -> None:
    try:
        values = decode_varints(np.frombuffer(noise, np.uint8))
    except MatrixError:
        assert noise[-1] >= 0x80 or b"\x80" * 10 in bytes(byte & 0x80 for byte in noise)
        return
    assert len(values) == sum(byte < 0x80 for byte in noise)


def test_shape_written_unpacked_is_understood() -> None:
    # proto2's plain `repeated int32 dims`, as other writers serialize it.
    raw = b"\x0a\x08" + np.array([1.5, -2.0], "<f4").tobytes() + b"\x12\x04\x08\x02\x08\x01"
    assert decode_float_matrix(zlib.compress(raw)).tolist() == [[1.5], [-2.0]]


def test_incompressible_matrix_of_full_size_comes_back() -> None:
    values = np.random.default_rng(0).random((64, 2650, 4), np.float32)
    raw = b"\x0a" + _VarintBytes(values.nbytes) + values.tobytes() + b"\x12\x06\x0a\x04\x40\xda\x14\x04"
    np.testing.assert_array_equal(decode_float_matrix(zlib.compress(raw, 1)), values)


@_BOUNDED
@given(
    hnp.arrays(np.int32, _SHAPES, elements=st.integers(0, 2000)),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 7),
)
def test_flipped_bit_is_refused_or_changes_nothing(values: NDArray[np.int32], position: float, bit: int) -> None:
    compressed = bytearray(int_matrix(values))
    compressed[int(position * len(compressed))] ^= 1 << bit
    try:
        decoded = decode_int_matrix(bytes(compressed))
    except MatrixError:
        return
    # Deflate has bits that mean nothing, such as those that fill its last byte.
    np.testing.assert_array_equal(decoded, values)


@_BOUNDED
@given(st.floats(0, 1, exclude_max=True))
def test_cut_stream_is_refused(share: float) -> None:
    compressed = float_matrix(np.arange(24, dtype=np.float32))
    with pytest.raises(MatrixError):
        decode_float_matrix(compressed[: int(share * len(compressed))])


def _message(data: bytes, shape: bytes) -> bytes:
    return zlib.compress(b"\x0a" + _VarintBytes(len(data)) + data + b"\x12" + _VarintBytes(len(shape)) + shape)


@pytest.mark.parametrize(
    ("compressed", "reason"),
    [
        pytest.param(b"not zlib at all", "zlib", id="no zlib"),
        pytest.param(zlib.compress(b""), "does not start", id="nothing in it"),
        pytest.param(zlib.compress(b"\x12\x02\x0a\x00"), "does not start", id="shape alone"),
        pytest.param(zlib.compress(b"\x0a\x04\x00\x00\x80\x3f"), "no shape", id="data alone"),
        pytest.param(_message(bytes(12), b"\x0a\x01\x04"), "4 floats", id="fewer values than the shape has"),
        pytest.param(_message(bytes(12), b"\x0a\x01\x02"), "2 floats", id="more values than the shape has"),
        pytest.param(_message(bytes(4), b"\x0a\x05\x01"), "shape", id="shape that ends inside itself"),
        pytest.param(_message(b"", b"\x0a\x0b\x00" + _VarintBytes(2**64 - 1)), "shape", id="negative dimension"),
        pytest.param(zlib.compress(b"\x0a\x64" + bytes(20)), "declares 100 bytes", id="data that ends early"),
    ],
)
def test_message_that_is_no_matrix_is_refused(compressed: bytes, reason: str) -> None:
    with pytest.raises(MatrixError, match=reason):
        decode_float_matrix(compressed)


def test_bomb_is_inflated_no_further_than_it_declares() -> None:
    bomb = zlib.compress(b"\x0a\x04" + bytes(200 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(MatrixError, match="beyond"):
            decode_float_matrix(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_bomb_that_declares_its_size_is_refused_unopened() -> None:
    with pytest.raises(MatrixError, match=str(MAX_MATRIX_BYTES)):
        decode_float_matrix(zlib.compress(b"\x0a" + _VarintBytes(MAX_MATRIX_BYTES + 1) + bytes(1 << 20)))


def test_integers_take_a_bounded_multiple_of_their_bytes() -> None:
    # Mostly one byte a value and a single long one: 8 MB of it deflate to 8 kB.
    data = b"\x80\x80\x01" + bytes((8 << 20) - 3)
    compressed = _message(data, b"\x0a\x04" + _VarintBytes(len(data) - 2))
    tracemalloc.start()
    try:
        assert len(decode_int_matrix(compressed)) == len(data) - 2
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * len(data)


def test_official_messages_are_the_ones_assumed_here() -> None:
    fields = {field.name: field.number for field in dataset_pb2.MatrixInt32.DESCRIPTOR.fields}
    assert fields == {"data": 1, "shape": 2}
