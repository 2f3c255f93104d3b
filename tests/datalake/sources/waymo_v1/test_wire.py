"""The first fields of a frame, read from the wire, against the official parser."""

from __future__ import annotations

import pytest
from google.protobuf.internal.encoder import _VarintBytes
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.wire import WireError, peek_frame, read_varint
from tests.frames import SEGMENT, START_US, make_frame

_BOUNDED = settings(max_examples=200, deadline=None, derandomize=True)


@_BOUNDED
@given(st.integers(0, 2**64 - 1))
def test_varint_is_read_as_protobuf_writes_it(value: int) -> None:
    data = _VarintBytes(value)
    assert read_varint(b"\xff" + data + b"\x01", 1) == (value, 1 + len(data))


@_BOUNDED
@given(st.integers(1 << 7, 2**64 - 1))
def test_cut_varint_is_refused(value: int) -> None:
    with pytest.raises(WireError):
        read_varint(_VarintBytes(value)[:-1], 0)


def test_varint_without_end_is_refused() -> None:
    with pytest.raises(WireError):
        read_varint(b"\x80" * 11 + b"\x01", 0)


@_BOUNDED
@given(name=st.text(min_size=1, max_size=40), timestamp=st.integers(0, 2**63 - 1), city=st.text(max_size=30))
def test_name_and_time_are_those_of_the_official_parser(name: str, timestamp: int, city: str) -> None:
    frame = dataset_pb2.Frame()
    frame.context.name, frame.timestamp_micros, frame.context.stats.location = name, timestamp, city
    assert peek_frame(frame.SerializeToString()) == (name, timestamp)


def test_calibrations_before_the_time_are_stepped_over() -> None:
    payload = make_frame().SerializeToString()
    assert peek_frame(payload[:2000]) == (SEGMENT, START_US)


@_BOUNDED
@given(st.integers(0, 1200))
def test_prefix_that_ends_too_early_is_refused_or_right(length: int) -> None:
    payload = make_frame().SerializeToString()
    try:
        found = peek_frame(payload[:length])
    except WireError:
        return
    assert found == (SEGMENT, START_US)


@_BOUNDED
@given(st.binary(max_size=60))
def test_noise_is_refused_or_yields_a_name_and_a_time(noise: bytes) -> None:
    try:
        name, timestamp = peek_frame(noise)
    except WireError:
        return
    assert isinstance(name, str)
    assert timestamp >= 0


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x10\x05\x0a\x03\x0a\x01a", id="time before context"),
        pytest.param(b"\x0a\x00\x10\x05", id="context without name"),
        pytest.param(b"\x0a\x03\x0a\x01\xff\x10\x05", id="name that is not text"),
        pytest.param(b"\x0a\x03\x0a\x01a", id="no time"),
        pytest.param(b"\x0b\x0c", id="group"),
    ],
)
def test_unusual_start_is_left_to_the_whole_parser(payload: bytes) -> None:
    with pytest.raises(WireError):
        peek_frame(payload)
