"""TFRecord framing: find, check, read and write records on any fsspec URL, one record in memory at a time.

A record is `length: uint64 | masked crc32c(length): uint32 | payload | masked crc32c(payload): uint32`, all
little-endian, and nothing separates records (source: `tensorflow/core/lib/io/record_writer.h`). A damaged
length therefore hides the start of the next record; `RecordFile.slots` finds it again by its checksum, so
that one flipped bit costs one record and not the rest of the file.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, NamedTuple

import fsspec
import google_crc32c
import numpy as np

from datalake.errors import UserError

HEADER_BYTES = 12
FOOTER_BYTES = 4
# A full Waymo frame has 4 to 10 MB. A longer claim is a damaged or hostile record, never allocated.
MAX_PAYLOAD_BYTES = 256 << 20
_SCAN_BYTES = 1 << 20
# What is read with a header: the context and the time of a Waymo frame stand in the first 3 to 8 kB.
PEEK_BYTES = 16 << 10


class RecordError(ValueError):
    """A record's bytes do not hold what its framing promises."""


class CompressedFileError(UserError):
    """A compressed file of records cannot be read to its end."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a record with an intact header lies: `offset` is the first byte of its header."""

    index: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        """Byte offset just behind the record."""
        return self.offset + HEADER_BYTES + self.length + FOOTER_BYTES


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of `length` bytes from `offset` in which no record can be read, and why.

    cut_off: the file ends inside a record that begins here: what is missing was never written, or never arrived
    """

    index: int
    offset: int
    length: int
    reason: str
    cut_off: bool = False


class _Damage(NamedTuple):
    """Why there is no record at an offset, and whether that is because the file ends."""

    reason: str
    cut_off: bool = False


def masked_crc32c(data: bytes) -> int:
    """Return TensorFlow's masked CRC32C of `data` (rotated right by 15 bits, plus a constant)."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame_record(payload: bytes) -> bytes:
    """Return `payload` with its TFRecord header and footer."""
    length = struct.pack("<Q", len(payload))
    return b"".join(
        (length, struct.pack("<I", masked_crc32c(length)), payload, struct.pack("<I", masked_crc32c(payload)))
    )


def write_records(url: str, payloads: Iterable[bytes]) -> None:
    """Write one TFRecord file to `url`; it appears under its name only when it is complete."""
    fs, path = fsspec.core.url_to_fs(url)
    fs.makedirs(fs._parent(path), exist_ok=True)
    unfinished = f"{path}.unfinished"
    with fs.open(unfinished, "wb") as stream:
        for payload in payloads:
            stream.write(frame_record(payload))
    fs.mv(unfinished, path)


class RecordFile:
    """Random access to the records of one TFRecord file.

    Nothing is read ahead but the first kB of each record, so walking a remote file costs one small request a record.
    A file on a web server that gives no ranges is downloaded as a whole, into a temporary file.
    A file that was written with TensorFlow's option GZIP or ZLIB is decompressed as a whole, into a temporary file.

    size: bytes of the records, decompressed
    is_whole: whether it did not end in the middle of its compressed stream
    """

    def __init__(self, url: str) -> None:
        """Open `url`; raises OSError (not found, no permission, …) as the store reports it.

        Raises CompressedFileError where it is compressed, and damaged.
        """
        self.url = url
        # An archive closes its files when nobody keeps it.
        fs, path = fsspec.core.url_to_fs(url)
        self._fs = fs
        self._stream: Any = fs.open(path, "rb", cache_type="none")
        if url.startswith(("http://", "https://")) and not _has_ranges(self._stream):
            self._stream.close()
            self._stream = _downloaded(fs, path)
        self.is_whole = True
        if _is_compressed(self._stream.read(HEADER_BYTES)):
            with self._stream as compressed:
                self._stream, self.is_whole = _decompressed(url, compressed)
        self.size = int(self._stream.seek(0, 2))
        # The beginnings of the present record and of the one behind it.
        self._peeks: deque[tuple[int, bytes]] = deque(maxlen=2)

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def read_range(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset` (fewer only at the end of the file)."""
        for at, peeked in self._peeks:
            if at <= offset and offset + length <= at + len(peeked):
                return peeked[offset - at : offset - at + length]
        self._stream.seek(offset)
        return bytes(self._stream.read(length))

    def read(self, slot: Slot) -> bytes:
        """Return the payload of `slot`; raises RecordError where it is cut off or fails its checksum."""
        data = self.read_range(slot.offset + HEADER_BYTES, slot.length + FOOTER_BYTES)
        if len(data) < slot.length + FOOTER_BYTES:
            raise RecordError(f"record is cut off after {len(data)} of {slot.length + FOOTER_BYTES} bytes")
        payload = data[: slot.length]
        (expected,) = struct.unpack("<I", data[slot.length :])
        if masked_crc32c(payload) != expected:
            raise RecordError(f"payload of {slot.length} bytes fails its CRC32C")
        return payload

    def stated_checksum(self, slot: Slot) -> bytes:
        """Return the checksum that a record states of its payload, as its four bytes; the payload is not read.

        Right behind `slots` has given the slot it costs no request, but for the last of a file.
        """
        return self.read_range(slot.end - FOOTER_BYTES, FOOTER_BYTES)

    def slots(self) -> Iterator[Slot | Gap]:
        """Walk the file: a `Slot` for each record whose header is intact, a `Gap` for what lies between.

        Payload checksums are left to `read`, with one exception: where no record follows a slot, its own
        checksum decides whether the slot is sound (the next header is damaged) or cut short (its stated
        length swallows the records behind it, which are then found again).
        """
        index, offset = 0, 0
        while offset < self.size:
            found = self._slot_at(index, offset)
            if isinstance(found, Slot) and not self._follows(found.end) and not self._is_sound(found):
                found = _Damage("record is shorter than its stated length, or fails its CRC32C before a damaged record")
            if isinstance(found, Slot):
                yield found
                offset = found.end
            else:
                start, offset = offset, self._next_header(offset + 1)
                yield Gap(index, start, offset - start, found.reason, found.cut_off and offset == self.size)
            index += 1

    def _slot_at(self, index: int, offset: int) -> Slot | _Damage:
        """Return the slot whose header stands at `offset`, or why there is none."""
        # With it comes the footer of the record before.
        start = max(0, offset - FOOTER_BYTES)
        if all(at != start for at, _ in self._peeks):
            self._peeks.append((start, self.read_range(start, offset - start + HEADER_BYTES + PEEK_BYTES)))
        header = self.read_range(offset, HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            return _Damage(f"file ends inside a record header ({len(header)} of {HEADER_BYTES} bytes)", cut_off=True)
        length, expected = struct.unpack("<QI", header)
        if masked_crc32c(header[:8]) != expected:
            return _Damage("record length fails its CRC32C")
        if length > MAX_PAYLOAD_BYTES:
            return _Damage(f"record claims {length} bytes, more than the {MAX_PAYLOAD_BYTES} that any frame can have")
        slot = Slot(index, offset, length)
        if slot.end > self.size:
            return _Damage(f"record of {length} bytes is cut off by the end of the file", cut_off=True)
        return slot

    def _follows(self, offset: int) -> bool:
        return offset == self.size or isinstance(self._slot_at(0, offset), Slot)

    def _is_sound(self, slot: Slot) -> bool:
        try:
            self.read(slot)
        except RecordError:
            return False
        return True

    def _next_header(self, offset: int) -> int:
        """Return the first byte offset from `offset` on at which an intact header stands, or the file's size."""
        while offset + HEADER_BYTES <= self.size:
            window = np.frombuffer(self.read_range(offset, _SCAN_BYTES + HEADER_BYTES - 1), np.uint8)
            starts = len(window) - HEADER_BYTES + 1
            # Lengths stay below 2**32, so the upper four bytes are zero; the lower four are not, or a stretch of
            # zeros would be checksummed byte by byte.
            zero = window[: starts + 7] == 0
            upper = zero[4:-3] & zero[5:-2] & zero[6:-1] & zero[7:]
            lower = zero[:starts] & zero[1 : starts + 1] & zero[2 : starts + 2] & zero[3 : starts + 3]
            for start in np.flatnonzero(upper & ~lower):
                header = window[start : start + HEADER_BYTES].tobytes()
                if masked_crc32c(header[:8]) != struct.unpack("<I", header[8:])[0]:
                    continue
                found = self._slot_at(0, offset + int(start))
                if isinstance(found, Slot):
                    return found.offset
            offset += starts
        return self.size


def _is_compressed(head: bytes) -> bool:
    """Return whether a file that begins so is gzip or zlib, and not a record."""
    if len(head) < HEADER_BYTES or masked_crc32c(head[:8]) == struct.unpack("<I", head[8:])[0]:
        return False
    # zlib: deflate with a window of 32 kB, and the header's own check.
    return head[:2] == b"\x1f\x8b" or (head[0] == 0x78 and int.from_bytes(head[:2], "big") % 31 == 0)


def _decompressed(url: str, compressed: Any) -> tuple[IO[bytes], bool]:
    """Return a temporary file with what is in a stream of gzip, of one or more members, or of zlib.

    And whether the stream has an end: of one that is cut off there is all that came before.
    """
    plain = tempfile.TemporaryFile()  # noqa: SIM115 - the record file closes it
    try:
        compressed.seek(0)
        # Either format, as the header says.
        stream = zlib.decompressobj(wbits=47)
        while block := compressed.read(_SCAN_BYTES):
            while block:
                if stream.eof:
                    stream = zlib.decompressobj(wbits=47)
                plain.write(stream.decompress(block))
                block = stream.unused_data
        plain.write(stream.flush())
    except zlib.error as error:
        plain.close()
        raise CompressedFileError(
            f"{url}: its records are compressed, and cannot be decompressed to the end ({error}); fetch it again"
        ) from error
    except BaseException:
        plain.close()
        raise
    return plain, stream.eof


def _has_ranges(stream: Any) -> bool:
    """Return whether a stream of fsspec over HTTP reads from the middle of its file."""
    try:
        stream.seek(1)
        stream.read(1)
        stream.seek(0)
    except ValueError:
        # What fsspec raises where the server answers with the whole file, or does not say how long it is.
        return False
    return True


def _downloaded(fs: Any, path: str) -> IO[bytes]:
    """Return a temporary file with the bytes of a whole file."""
    whole = tempfile.TemporaryFile()  # noqa: SIM115 - the record file closes it
    try:
        with fs.open(path, "rb", block_size=0) as stream:
            while block := stream.read(_SCAN_BYTES):
                whole.write(block)
        whole.seek(0)
    except BaseException:
        whole.close()
        raise
    return whole
