"""TFRecord framing: what is written is read, and what is damaged is bounded."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datalake.sources.waymo_v1.tfrecord import (
    MAX_PAYLOAD_BYTES,
    Gap,
    RecordError,
    RecordFile,
    Slot,
    frame_record,
    masked_crc32c,
    write_records,
)

_SAME_FOLDER = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
_PAYLOADS = st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=6)


class CountingFile(RecordFile):
    """A record file that counts its reads: on an object store each is a request."""

    reads = 0

    def read_range(self, offset: int, length: int) -> bytes:
        self.reads += 1
        return super().read_range(offset, length)


def _walk(path: Path, data: bytes) -> list[tuple[Slot | Gap, bytes | None]]:
    """Return each slot with its payload, or None where that cannot be read, and each gap."""
    path.write_bytes(data)
    found: list[tuple[Slot | Gap, bytes | None]] = []
    with RecordFile(str(path)) as file:
        for slot in file.slots():
            payload = None
            if isinstance(slot, Slot):
                try:
                    payload = file.read(slot)
                except RecordError:
                    payload = None
            found.append((slot, payload))
    return found


def _extents(found: list[tuple[Slot | Gap, bytes | None]]) -> list[tuple[int, int]]:
    return [
        (part.offset, part.end if isinstance(part, Slot) else part.offset + part.length)
        for part, _ in found  # what was read does not matter here
    ]


def test_masked_crc_is_the_published_one() -> None:
    # RFC 3720 B.4: CRC32C of 32 zero bytes is 0x8A9136AA; the mask is TensorFlow's `crc32c::Mask`.
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) % 2**32


def test_header_is_length_and_its_masked_crc() -> None:
    length, crc = struct.unpack("<QI", frame_record(b"abc")[:12])
    assert (length, crc) == (3, masked_crc32c(struct.pack("<Q", 3)))


@_SAME_FOLDER
@given(payloads=st.lists(st.binary(max_size=80), max_size=6))
def test_written_records_are_read_back(tmp_path: Path, payloads: list[bytes]) -> None:
    path = tmp_path / "records.tfrecord"
    write_records(str(path), payloads)
    assert [payload for _, payload in _walk(path, path.read_bytes())] == payloads


def test_real_file_is_read_to_its_last_byte(real_data: Path) -> None:
    path = real_data / "waymo_front_segment.tfrecord"
    with RecordFile(str(path)) as file:
        slots = [found for found in file.slots() if isinstance(found, Slot)]
        assert len(slots) == 130
        assert slots[-1].end == path.stat().st_size
        assert all(len(file.read(slot)) == slot.length for slot in slots)


@dataclass
class _Edit:
    kind: str
    position: float
    length: int
    value: int


_EDITS = st.lists(
    st.builds(
        _Edit,
        kind=st.sampled_from(["flip", "remove", "insert", "zero", "truncate"]),
        position=st.floats(0, 1, exclude_max=True),
        length=st.integers(1, 120),
        value=st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


@_SAME_FOLDER
@given(payloads=_PAYLOADS, edits=_EDITS)
def test_whatever_is_damaged_every_byte_is_in_one_slot_or_gap(
    tmp_path: Path, payloads: list[bytes], edits: list[_Edit]
) -> None:
    data, _ = _damage(payloads, edits)
    extents = _extents(_walk(tmp_path / "damaged.tfrecord", data))
    assert [start for start, _ in extents] == [0, *(end for _, end in extents)][: len(extents)]
    assert (extents[-1][1] if extents else 0) == len(data)


@_SAME_FOLDER
@given(payloads=_PAYLOADS, edits=_EDITS)
def test_whatever_is_damaged_intact_records_are_found(
    tmp_path: Path, payloads: list[bytes], edits: list[_Edit]
) -> None:
    data, intact = _damage(payloads, edits)
    found = _walk(tmp_path / "damaged.tfrecord", data)
    read = {part.offset: payload for part, payload in found if payload is not None}
    # One exception: a slot that is cut by exactly the size of its neighbors ends where a record starts, so
    # nothing but its checksum tells; its extent, with the neighbors in it, is then reported as unreadable.
    unreadable = [range(part.offset, part.end) for part, payload in found if isinstance(part, Slot) and payload is None]
    for offset, payload in intact.items():
        assert read.get(offset) == payload or any(offset in extent for extent in unreadable)


@_SAME_FOLDER
@given(payloads=_PAYLOADS, edits=_EDITS)
def test_whatever_is_damaged_nothing_is_read_that_was_not_written(
    tmp_path: Path, payloads: list[bytes], edits: list[_Edit]
) -> None:
    data, _ = _damage(payloads, edits)
    read = {payload for _, payload in _walk(tmp_path / "damaged.tfrecord", data) if payload is not None}
    assert read <= set(payloads)


def _damage(payloads: list[bytes], edits: list[_Edit]) -> tuple[bytes, dict[int, bytes]]:
    """Return the damaged file, and by its offset the payload of each record that came through whole."""
    records = [frame_record(payload) for payload in payloads]
    # Each byte carries its origin along: (record, position in it), or None once it is changed.
    cells: list[tuple[int, tuple[int, int] | None]] = [
        (byte, (index, position)) for index, record in enumerate(records) for position, byte in enumerate(record)
    ]
    for edit in edits:
        at = int(edit.position * len(cells))
        if edit.kind == "flip" and cells:
            cells[at] = (cells[at][0] ^ (1 << edit.value % 8), None)
        elif edit.kind == "remove":
            del cells[at : at + edit.length]
        elif edit.kind == "insert":
            cells[at:at] = [(byte, None) for byte in random.Random(edit.value).randbytes(edit.length)]
        elif edit.kind == "zero":
            cells[at : at + edit.length] = [(0, None)] * len(cells[at : at + edit.length])
        elif edit.kind == "truncate":
            del cells[at:]
    intact = {}
    for offset, (_, origin) in enumerate(cells):
        if origin is not None and origin[1] == 0:
            index, size = origin[0], len(records[origin[0]])
            if [cell[1] for cell in cells[offset : offset + size]] == [(index, position) for position in range(size)]:
                intact[offset] = payloads[index]
    return bytes(byte for byte, _ in cells), intact


@pytest.mark.parametrize("position", [0, 3, 7, 8, 11], ids=lambda position: f"byte {position}")
def test_flipped_header_costs_its_own_record_alone(tmp_path: Path, position: int) -> None:
    records = [frame_record(bytes([65 + index]) * 50) for index in range(3)]
    broken = bytearray(records[1])
    broken[position] ^= 0x10
    found = _walk(tmp_path / "file", records[0] + bytes(broken) + records[2])
    assert [payload for _, payload in found] == [b"A" * 50, None, b"C" * 50]
    gap = found[1][0]
    assert isinstance(gap, Gap)
    assert (gap.index, gap.offset, gap.length) == (1, 66, 66)


def test_flipped_payload_is_a_slot_that_cannot_be_read(tmp_path: Path) -> None:
    record = bytearray(frame_record(b"A" * 50))
    record[20] ^= 1
    path = tmp_path / "file"
    path.write_bytes(bytes(record) + frame_record(b"B"))
    with RecordFile(str(path)) as file:
        slot = next(iter(file.slots()))
        assert isinstance(slot, Slot)
        with pytest.raises(RecordError, match="CRC32C"):
            file.read(slot)


def test_last_record_that_is_cut_off_is_a_gap(tmp_path: Path) -> None:
    found = _walk(tmp_path / "file", frame_record(b"A" * 50) + frame_record(b"B" * 50)[:40])
    gap = found[1][0]
    assert isinstance(gap, Gap)
    assert "cut off" in gap.reason
    assert (gap.offset, gap.length) == (66, 40)


@pytest.mark.parametrize(
    ("data", "cut_off"),
    [
        (frame_record(b"B" * 50)[:40], True),
        (frame_record(b"B" * 50)[:-1], True),
        (frame_record(b"B" * 50)[:5], True),
        (frame_record(b"B" * 50)[:40] + frame_record(b"C"), False),
        (b"\xff" + frame_record(b"B" * 50)[1:], False),
        (bytes(100), False),
    ],
    ids=["payload", "footer", "header", "in the middle", "damaged length", "zeros"],
)
def test_file_that_ends_inside_a_record_is_told_from_one_that_is_damaged(
    tmp_path: Path, data: bytes, cut_off: bool
) -> None:
    (gap,) = [found for found, _ in _walk(tmp_path / "file", frame_record(b"A" * 50) + data) if isinstance(found, Gap)]
    assert (gap.offset, gap.cut_off) == (66, cut_off)


def test_stated_checksums_are_those_of_the_payloads_and_cost_one_request_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    payloads = [bytes([65 + index]) * 50_000 for index in range(4)]
    path.write_bytes(b"".join(frame_record(payload) for payload in payloads))
    with RecordFile(str(path)) as file:
        stream, asked = file._stream, []

        def read(length: int) -> bytes:
            asked.append(length)
            return bytes(stream.read(length))

        monkeypatch.setattr(file, "_stream", SimpleNamespace(seek=stream.seek, close=stream.close, read=read))
        slots = [(found, file.stated_checksum(found)) for found in file.slots() if isinstance(found, Slot)]
    assert len(asked) == len(payloads) + 1
    assert [stated for _, stated in slots] == [struct.pack("<I", masked_crc32c(payload)) for payload in payloads]


def test_record_cut_short_in_the_middle_does_not_swallow_the_next(tmp_path: Path) -> None:
    found = _walk(tmp_path / "file", frame_record(b"A" * 50)[:30] + frame_record(b"B" * 50) + frame_record(b"C"))
    assert [payload for _, payload in found] == [None, b"B" * 50, b"C"]


def test_claim_of_terabytes_is_never_allocated(tmp_path: Path) -> None:
    length = struct.pack("<Q", 1 << 41)
    found = _walk(tmp_path / "file", length + struct.pack("<I", masked_crc32c(length)) + frame_record(b"B"))
    gap = found[0][0]
    assert isinstance(gap, Gap)
    assert str(MAX_PAYLOAD_BYTES) in gap.reason
    assert found[1][1] == b"B"


def test_empty_file_has_no_records(tmp_path: Path) -> None:
    assert _walk(tmp_path / "file", b"") == []


def test_file_of_something_else_is_one_gap(tmp_path: Path) -> None:
    found = _walk(tmp_path / "file", random.Random(0).randbytes(5000))
    assert _extents(found) == [(0, 5000)]


def test_zero_filled_stretch_is_not_read_byte_by_byte(tmp_path: Path) -> None:
    # An interrupted copy leaves zeros. On an object store each read is a request.
    path = tmp_path / "file"
    path.write_bytes(frame_record(b"A") + bytes(50_000) + frame_record(b"B"))
    file = CountingFile(str(path))
    with file:
        assert sum(isinstance(found, Slot) for found in file.slots()) == 2
        assert file.reads < 20


def test_unfinished_file_does_not_appear_under_its_name(tmp_path: Path) -> None:
    def payloads() -> list[bytes]:
        raise RuntimeError("the renderer stopped")

    path = tmp_path / "file.tfrecord"
    with pytest.raises(RuntimeError):
        write_records(str(path), (payload for payload in payloads()))
    assert not path.exists()


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RecordFile(str(tmp_path / "nothing.tfrecord"))


def test_records_travel_through_s3(s3_lake: str) -> None:
    url = f"{s3_lake}/file.tfrecord"
    write_records(url, [b"A" * 50, b"B"])
    with RecordFile(url) as file:
        assert [file.read(slot) for slot in file.slots() if isinstance(slot, Slot)] == [b"A" * 50, b"B"]
