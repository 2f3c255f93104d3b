"""The study of mutated records: whatever is done to a file, no crash, no hang, and nothing lost in silence.

    python -m benchmarks.mutations --count 1000 --seed 0

Each file has ten records, some of them mutated: in their framing (bits, bytes and stretches of the file) or in
their content (fields, compressed matrices, images, labels, panoptic labels, projections, with the checksums made right
again). After its build every intact frame must be in the lake, whole; every mutated record must be in the lake, with or
without part faults, or accounted for in the quarantine of its segment, or in the reason for which its file was refused.
A panoptic label whose pixels name an unknown class is told by `verify --decode` alone.
"""

from __future__ import annotations

import io
import json
import random
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from google.protobuf.message import DecodeError
from PIL import Image
from rich.console import Console
from rich.table import Table

from datalake.build import BuildConfig, build_segment
from datalake.commit import LakeError
from datalake.lake import open_lake, prepare_lake, publish_snapshot
from datalake.plan import plan_segments
from datalake.sources.formats import index_source
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.tfrecord import RecordFile, Slot, frame_record
from datalake.store import Store
from datalake.verify import verify
from tests.frames import HEIGHT, WIDTH, int_matrix, jpeg, make_frame, panoptic_png, read_int_matrix

_REAL_DATA = Path(__file__).parents[2] / "shared/data"
_RECORDS_PER_FILE = 10
_SEGMENTS = ("segment_a", "segment_b")
_START_US = 1_600_000_000_000_000
_LAST_OF_GROUP = ("bytes zeroed", "JPEG cut off", "label of an unknown camera", "panoptic class unknown")
_OUTCOMES = ("kept whole", "kept with part faults", "told by verify", "quarantined", "failed")

# What a mutation does: the record's new bytes in the file, given a payload.
_Mutate = Callable[[random.Random, bytes], bytes]


class _HangError(Exception):
    """A file took longer than it may. Not an OSError, which a build may expect and handle."""


@dataclass(frozen=True, kw_only=True)
class MutationConfig:
    """How many records are mutated, and how."""

    count: int = 1000
    seed: int = 0
    # A file that takes longer than this counts as a hang.
    seconds_per_file: float = 30.0
    # Hand-made frames alone, without the real ones that lie beside the checkout.
    tiny: bool = False


@dataclass
class MutationReport:
    """What became of the mutated records: outcomes by kind, and every violation in one line."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    files: int = 0
    seconds: float = 0.0

    @property
    def records(self) -> int:
        """The number of mutated records."""
        return sum(sum(counts.values()) for counts in self.outcomes.values())


@dataclass(frozen=True)
class _Record:
    """One record of a file: the frame it was made from, and its bytes as they lie there from `start` on."""

    key: tuple[str, int]
    payload: bytes
    mutation: str | None
    data: bytes
    start: int

    @property
    def end(self) -> int:
        """The offset behind its last byte."""
        return self.start + len(self.data)

    @property
    def claim(self) -> tuple[str, int] | None:
        """The segment and the time that it now says it has, as the official parser reads them."""
        try:
            frame = dataset_pb2.Frame.FromString(self.data[12:-4])
        except DecodeError:
            return None
        return frame.context.name, frame.timestamp_micros


# --- Mutations of the framing: the checksums tell. ---


def _flip_bits(data: bytes, random_: random.Random, start: int, stop: int) -> bytes:
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 1, 3))):
        changed[random_.randrange(start, stop)] ^= 1 << random_.randrange(8)
    return bytes(changed)


def _cut_end(random_: random.Random, payload: bytes) -> bytes:
    record = frame_record(payload)
    return record[: random_.randrange(1, len(record))]


def _remove_bytes(random_: random.Random, payload: bytes) -> bytes:
    record = frame_record(payload)
    start = random_.randrange(len(record) - 1)
    return record[:start] + record[start + random_.randint(1, min(4096, len(record) - 1 - start)) :]


def _insert_bytes(random_: random.Random, payload: bytes) -> bytes:
    record = frame_record(payload)
    at = random_.randrange(1, len(record))
    return record[:at] + random_.randbytes(random_.randint(1, 4096)) + record[at:]


def _zero_bytes(random_: random.Random, payload: bytes) -> bytes:
    record = frame_record(payload)
    start = random_.randrange(len(record))
    length = min(len(record) - start, random_.randint(1, 4096))
    return record[:start] + bytes(length) + record[start + length :]


_FRAMING: dict[str, _Mutate] = {
    "flip in length": lambda r, p: _flip_bits(frame_record(p), r, 0, 8),
    "flip in length's checksum": lambda r, p: _flip_bits(frame_record(p), r, 8, 12),
    "flip in first 64 bytes": lambda r, p: _flip_bits(frame_record(p), r, 12, 76),
    "flip in payload": lambda r, p: _flip_bits(frame_record(p), r, 12, 12 + len(p)),
    "flip in footer": lambda r, p: _flip_bits(frame_record(p), r, 12 + len(p), 16 + len(p)),
    "end cut off": _cut_end,
    "bytes removed": _remove_bytes,
    "bytes inserted": _insert_bytes,
    "bytes zeroed": _zero_bytes,
}


# --- Mutations of the content: the checksums are right. ---


def _parsed(change: Callable[[random.Random, Any], None]) -> _Mutate:
    """Return a mutation that changes the parsed frame."""

    def mutate(random_: random.Random, payload: bytes) -> bytes:
        frame = dataset_pb2.Frame.FromString(payload)
        change(random_, frame)
        return frame_record(frame.SerializeToString())

    return mutate


def _messages(message: Any) -> Iterator[Any]:
    """Yield a message and every message inside it."""
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for inner in value if descriptor.is_repeated else [value]:
                yield from _messages(inner)


def _remove_field(random_: random.Random, frame: Any) -> None:
    holders = [message for message in _messages(frame) if message.ListFields()]
    message = random_.choice(holders)
    descriptor, value = random_.choice(message.ListFields())
    if descriptor.is_repeated and random_.random() < 0.5:
        del value[random_.randrange(len(value))]
    else:
        message.ClearField(descriptor.name)


def _spoil_number(random_: random.Random, frame: Any) -> None:
    """Set one number to a value at or beyond the edge of its type."""
    places = [
        (message, descriptor, value)
        for message in _messages(frame)
        for descriptor, value in message.ListFields()
        if descriptor.cpp_type in (descriptor.CPPTYPE_DOUBLE, descriptor.CPPTYPE_FLOAT, descriptor.CPPTYPE_INT32)
        or descriptor.name == "timestamp_micros"
    ]
    message, descriptor, value = random_.choice(places)
    if descriptor.cpp_type == descriptor.CPPTYPE_INT32:
        spoiled: float = random_.choice((-1, 0, 2**31 - 1, -(2**31)))
    elif descriptor.name == "timestamp_micros":
        spoiled = random_.choice((-1, 0, -(2**63)))
    else:
        spoiled = random_.choice((float("nan"), float("inf"), -float("inf"), 1e30, -1.0, 0.0))
    if descriptor.is_repeated:
        value[random_.randrange(len(value))] = spoiled
    else:
        setattr(message, descriptor.name, spoiled)


def _compressed_fields(frame: Any) -> list[tuple[Any, str]]:
    return [
        (message, descriptor.name)
        for laser in frame.lasers
        for message in (laser.ri_return1, laser.ri_return2)
        for descriptor, _ in message.ListFields()
        if descriptor.name.endswith("_compressed") and "flow" not in descriptor.name
    ]


def _on_matrix(change: Callable[[random.Random, bytes], bytes]) -> _Mutate:
    """Return a mutation that changes one compressed matrix of a frame with lidar."""

    def spoil(random_: random.Random, frame: Any) -> None:
        message, name = random_.choice(_compressed_fields(frame))
        setattr(message, name, change(random_, getattr(message, name)))

    return _parsed(spoil)


def _flip_inflated(random_: random.Random, compressed: bytes) -> bytes:
    try:
        raw = zlib.decompress(compressed)
    except zlib.error:
        raw = compressed
    start = random_.choice((0, max(0, len(raw) - 12)))
    return zlib.compress(_flip_bits(raw, random_, start, min(len(raw), start + 12)), 1)


def _flip_compressed(random_: random.Random, compressed: bytes) -> bytes:
    """Return bytes that do not say the same: a few bits of a stream, such as the rest of its last byte, say nothing."""
    while True:
        changed = _flip_bits(compressed, random_, 0, len(compressed))
        try:
            if zlib.decompress(changed) != zlib.decompress(compressed):
                return changed
        except zlib.error:
            return changed


def _bomb(random_: random.Random, compressed: bytes) -> bytes:
    del compressed
    declared = random_.choice((b"\x0a\x04", b"\x0a\x80\x80\x80\x10", b"\x0a\xff\xff\xff\xff\x07", b"\x0a\x00"))
    return zlib.compress(declared + bytes(40 << 20), 1)


def _on_image(change: Callable[[random.Random, bytes], bytes]) -> _Mutate:
    """Return a mutation that changes one image."""

    def spoil(random_: random.Random, frame: Any) -> None:
        image = random_.choice(frame.images)
        image.image = change(random_, image.image)

    return _parsed(spoil)


def _rename(random_: random.Random, frame: Any) -> None:
    frame.context.name = random_.choice(("../../evil", "/etc/passwd", "", ".", "a/b", "a\0b", "x" * 5000))


def _spoil_text(random_: random.Random, payload: bytes) -> bytes:
    """Make one name in the frame something that is not UTF-8."""
    frame = dataset_pb2.Frame.FromString(payload)
    texts = [
        (message, descriptor.name)
        for message in _messages(frame)
        for descriptor, _ in message.ListFields()
        if descriptor.type == descriptor.TYPE_STRING
    ]
    message, name = random_.choice(texts)
    mark = "#~spoiled~#"
    setattr(message, name, mark)
    return frame_record(frame.SerializeToString().replace(mark.encode(), b"\xff" * len(mark)))


def _same_time(random_: random.Random, payload: bytes) -> bytes:
    del random_
    return frame_record(payload) * 2


# --- Mutations of labels, panoptic labels and projections. ---


def _on_box(change: Callable[[random.Random, Any], None]) -> _Mutate:
    """Return a mutation that changes one label, of a camera or in 3D."""

    def spoil(random_: random.Random, frame: Any) -> None:
        labels = [label for group in frame.camera_labels for label in group.labels]
        change(random_, random_.choice([*labels, *frame.laser_labels]))

    return _parsed(spoil)


def _move_out(random_: random.Random, frame: Any) -> None:
    """Move one 2D box beyond any edge of its image."""
    group = random_.choice([group for group in frame.camera_labels if group.labels])
    box = random_.choice(group.labels).box
    box.center_x, box.center_y = random_.choice(((-1e4, 1.0), (1e4, 1.0), (1.0, -1e4), (1.0, 1e5)))
    box.length, box.width = 10.0, 10.0


def _reach_out(random_: random.Random, frame: Any) -> None:
    """Make one 2D box larger than its image, which keeps what is inside."""
    group = random_.choice([group for group in frame.camera_labels if group.labels])
    box = random_.choice(group.labels).box
    box.length, box.width = random_.choice(((1e5, 1.0 + box.width), (1.0 + box.length, 1e5), (1e5, 1e5)))


def _flatten(random_: random.Random, label: Any) -> None:
    setattr(label.box, random_.choice(("length", "width")), random_.choice((0.0, -1.0, -1e30)))


def _unlimit(random_: random.Random, label: Any) -> None:
    name = random_.choice(("center_x", "center_y", "length", "width"))
    setattr(label.box, name, random_.choice((float("nan"), float("inf"), -float("inf"), 1e30)))


def _misname_camera(random_: random.Random, frame: Any) -> None:
    group = random_.choice([group for group in frame.camera_labels if group.labels])
    # Unknown values of an enumeration come as raw fields, as another version of the format would write them.
    raw = group.SerializeToString().replace(
        b"\x08" + bytes([group.name]), b"\x08" + bytes([random_.choice((9, 77))]), 1
    )
    group.ParseFromString(raw)


def _retype(random_: random.Random, label: Any) -> None:
    label.type = 0
    del random_


def _on_panoptic(change: Callable[[random.Random, Any], None]) -> _Mutate:
    """Return a mutation that changes one panoptic label of a frame that has some."""

    def spoil(random_: random.Random, frame: Any) -> None:
        change(random_, random_.choice([each for each in _panoptic_labels(frame) if each.panoptic_label]))

    return _parsed(spoil)


def _panoptic_labels(frame: Any) -> list[Any]:
    return [image.camera_segmentation_label for image in frame.images if image.HasField("camera_segmentation_label")]


def _flip_panoptic(random_: random.Random, label: Any) -> None:
    label.panoptic_label = _flip_bits(label.panoptic_label, random_, 0, len(label.panoptic_label))


def _cut_panoptic(random_: random.Random, label: Any) -> None:
    # Of no bytes it would be no label at all.
    label.panoptic_label = label.panoptic_label[: random_.randrange(1, len(label.panoptic_label))]


def _exchange_panoptic(random_: random.Random, label: Any) -> None:
    stream = io.BytesIO()
    Image.new(random_.choice(("RGB", "L", "RGBA", "P")), (WIDTH, HEIGHT)).save(stream, "PNG")
    label.panoptic_label = random_.choice((stream.getvalue(), jpeg(), b"PNG", bytes(100)))


def _resize_panoptic(random_: random.Random, label: Any) -> None:
    height, width = random_.choice(((HEIGHT * 2, WIDTH), (HEIGHT, WIDTH - 1), (1, 1), (WIDTH * 50, HEIGHT * 50)))
    label.panoptic_label = panoptic_png(np.zeros((height, width), np.uint16))


def _undivide(random_: random.Random, label: Any) -> None:
    label.panoptic_label_divisor = random_.choice((0, -1, -(2**31)))


def _unknown_class(random_: random.Random, label: Any) -> None:
    code = np.zeros((HEIGHT, WIDTH), np.uint16)
    code[random_.randrange(HEIGHT), random_.randrange(WIDTH)] = random_.randint(29, 60) * 1000
    label.panoptic_label, label.panoptic_label_divisor = panoptic_png(code), 1000


def _on_projection(change: Callable[[random.Random, Any, tuple[int, int]], Any]) -> _Mutate:
    """Return a mutation that changes the stored projections of one return, given (row, column) of a cell with a hit."""

    def spoil(random_: random.Random, frame: Any) -> None:
        message = random_.choice([each for laser in frame.lasers for each in (laser.ri_return1, laser.ri_return2)])
        image = dataset_pb2.MatrixFloat.FromString(zlib.decompress(message.range_image_compressed))
        range_m = np.array(image.data, np.float32).reshape(image.shape.dims)[..., 0]
        cell = random_.choice([(int(row), int(column)) for row, column in np.argwhere(range_m > 0)])
        stored = change(random_, read_int_matrix(message.camera_projection_compressed), cell)
        message.camera_projection_compressed = b"" if stored is None else int_matrix(stored)

    return _parsed(spoil)


def _project_out(random_: random.Random, stored: Any, cell: tuple[int, int]) -> Any:
    edge = random_.choice(((5000, 0), (0, 5000), (-1, 0), (0, 2**31 - 1), (1 << 15, 1), (1 << 16, 1 << 16)))
    stored[cell] = (1, *edge, 0, 0, 0)
    return stored


def _project_elsewhere(random_: random.Random, stored: Any, cell: tuple[int, int]) -> Any:
    stored[cell] = (random_.choice((-1, 6, 256, 2**31 - 1, -(2**31))), 1, 1, 0, 0, 0)
    return stored


def _reshape_projections(random_: random.Random, stored: Any, cell: tuple[int, int]) -> Any:
    del cell
    rows, columns, slots = stored.shape
    shape = random_.choice(((rows * columns, slots), (columns * slots, rows, 1), (rows, columns * 2, 3)))
    return stored.reshape(shape)


_MATRIX: dict[str, _Mutate] = {
    "zlib flipped": _on_matrix(_flip_compressed),
    "zlib cut off": _on_matrix(lambda r, data: data[: r.randrange(len(data))]),
    "matrix header or shape flipped": _on_matrix(_flip_inflated),
    "decompression bomb": _on_matrix(_bomb),
}
_PROJECTION: dict[str, _Mutate] = {
    "projection out of its image": _on_projection(_project_out),
    "projections ten times too far": _on_projection(lambda _, stored, __: stored * [1, 10, 10, 1, 10, 10]),
    "projection into an unknown camera": _on_projection(_project_elsewhere),
    "projections of another shape": _on_projection(_reshape_projections),
    "projections missing": _on_projection(lambda *_: None),
}
_PANOPTIC: dict[str, _Mutate] = {
    "panoptic flipped": _on_panoptic(_flip_panoptic),
    "panoptic cut off": _on_panoptic(_cut_panoptic),
    "panoptic of another kind": _on_panoptic(_exchange_panoptic),
    "panoptic of another size": _on_panoptic(_resize_panoptic),
    "panoptic divisor spoiled": _on_panoptic(_undivide),
    "panoptic class unknown": _on_panoptic(_unknown_class),
}
_LABEL: dict[str, _Mutate] = {
    "2D box outside of its image": _parsed(_move_out),
    "2D box beyond its image": _parsed(_reach_out),
    "box without area": _on_box(_flatten),
    "box not finite": _on_box(_unlimit),
    "label of no type": _on_box(_retype),
    "label of an unknown camera": _parsed(_misname_camera),
}
_CONTENT: dict[str, _Mutate] = {
    "flip in message": lambda r, p: frame_record(_flip_bits(p, r, 0, len(p))),
    "flip in message's first 2 kB": lambda r, p: frame_record(_flip_bits(p, r, 0, min(2048, len(p)))),
    "message cut off": lambda r, p: frame_record(p[: r.randrange(len(p))]),
    "message is noise": lambda r, p: frame_record(r.randbytes(min(len(p), r.randrange(1, 500)))),
    "field removed": _parsed(_remove_field),
    "number spoiled": _parsed(_spoil_number),
    "text spoiled": _spoil_text,
    "hostile name": _parsed(_rename),
    "record twice": _same_time,
    "JPEG header flipped": _on_image(lambda r, data: _flip_bits(data, r, 0, min(200, len(data)))),
    "JPEG cut off": _on_image(lambda r, data: data[: r.randrange(len(data))]),
}
_MUTATIONS = _FRAMING | _CONTENT | _LABEL | _PANOPTIC | _MATRIX | _PROJECTION
# These can never pass unnoticed: a checksum, a size, or the number of records tells.
_ALWAYS_NOTICED = {
    *_FRAMING,
    "record twice",
    "hostile name",
    "message is noise",
    "zlib flipped",
    "zlib cut off",
    "decompression bomb",
    "JPEG cut off",
    *_LABEL.keys() - {"2D box beyond its image"},
    *_PANOPTIC,
    *_PROJECTION.keys() - {"projections ten times too far"},
}


# --- The study ---


def base_payloads(tiny: bool) -> list[bytes]:
    """Return a few frames to mutate: hand-made ones and, where they are there, real ones with lidar and without."""
    frames = [make_frame(index, lidar=index != 5) for index in range(6)]
    for frame in frames[3:]:
        for image in frame.images:
            label = image.camera_segmentation_label
            label.panoptic_label_divisor = 1000
            label.panoptic_label = panoptic_png(np.full((HEIGHT, WIDTH), 5007, np.uint16))
    payloads = [frame.SerializeToString() for frame in frames]
    if tiny:
        return payloads
    for name in ("kitti_000008_as_waymo.tfrecord", "waymo_front_segment.tfrecord"):
        if (_REAL_DATA / name).exists():
            with RecordFile(str(_REAL_DATA / name)) as file:
                payloads.append(file.read(next(slot for slot in file.slots() if isinstance(slot, Slot))))
    return payloads


def run_study(config: MutationConfig) -> MutationReport:
    """Mutate, build and check file after file until `count` records are done."""
    random_ = random.Random(config.seed)
    bases, report = base_payloads(config.tiny), MutationReport()
    kinds: list[str] = []
    start = time.perf_counter()
    while report.records < config.count:
        wanted = min(random_.randint(3, 5), config.count - report.records)
        while len(kinds) < wanted:
            # Every kind comes as often as every other.
            kinds += random_.sample(sorted(_MUTATIONS), len(_MUTATIONS))
        mutations: list[str | None] = [kinds.pop() for _ in range(wanted)]
        mutations += [None] * (_RECORDS_PER_FILE - wanted)
        random_.shuffle(mutations)
        _run_file(_make_records(random_, bases, mutations), config, report)
        report.files += 1
    report.seconds = time.perf_counter() - start
    return report


def _make_records(random_: random.Random, bases: Sequence[bytes], mutations: Sequence[str | None]) -> list[_Record]:
    """Return the records of a file: two segments, every frame at a time of its own."""
    records: list[_Record] = []
    for index, mutation in enumerate(mutations):
        frame = dataset_pb2.Frame.FromString(random_.choice(bases))
        while not _has_what_is_mutated(frame, mutation):
            frame = dataset_pb2.Frame.FromString(random_.choice(bases))
        frame.context.name = _SEGMENTS[index * len(_SEGMENTS) // len(mutations)]
        frame.timestamp_micros = _START_US + index * 100_003 + random_.randrange(50_000)
        payload = frame.SerializeToString()
        data = intact = frame_record(payload)
        while mutation is not None and data == intact:
            data = _MUTATIONS[mutation](random_, payload)
        key = (frame.context.name, frame.timestamp_micros)
        records.append(_Record(key, payload, mutation, data, records[-1].end if records else 0))
    return records


def _has_what_is_mutated(frame: Any, mutation: str | None) -> bool:
    if mutation in _MATRIX:
        return bool(_compressed_fields(frame))
    if mutation in _PROJECTION:
        # With as many cells as a real frame has, the official messages take a second.
        returns = [each for laser in frame.lasers for each in (laser.ri_return1, laser.ri_return2)]
        return bool(returns) and all(0 < len(each.camera_projection_compressed) < 2000 for each in returns)
    if mutation in _PANOPTIC:
        return any(label.panoptic_label for label in _panoptic_labels(frame))
    return mutation not in _LABEL or any(group.labels for group in frame.camera_labels)


def _alone(mutated: _Record, records: Sequence[_Record]) -> list[_Record]:
    """Return the records of the same file with one mutated record, the others as they were before."""
    alone: list[_Record] = []
    for record in records:
        data, mutation = (record.data, record.mutation) if record is mutated else (frame_record(record.payload), None)
        alone.append(_Record(record.key, record.payload, mutation, data, alone[-1].end if alone else 0))
    return alone


@contextmanager
def _time_bound(seconds: float) -> Iterator[None]:
    def expire(*_: object) -> None:
        raise _HangError(f"took longer than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@dataclass
class _Result:
    """What a build left of a file.

    frames: (points, images, 2D labels, 3D labels) by (segment, time)
    rows: the lake's quarantine
    unusable: the frames with a point whose position is not finite
    failed: the quarantine rows of segments that failed
    told: what `verify --decode` finds of the lake
    refused: why the file as a whole was refused
    """

    frames: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    unusable: set[tuple[str, int]] = field(default_factory=set)
    failed: list[dict[str, Any]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    refused: str = ""


def _run_file(records: Sequence[_Record], config: MutationConfig, report: MutationReport) -> None:
    mutated = [record for record in records if record.mutation is not None]
    place = f"seed {config.seed}, file {report.files}"
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        source = Path(name) / "source.tfrecord"
        source.write_bytes(b"".join(record.data for record in records))
        try:
            with _time_bound(config.seconds_per_file):
                _check_extents(source, place, report)
                decode = any(record.mutation == "panoptic class unknown" for record in mutated)
                result = _build(source, decode)
        except Exception as error:
            if len(mutated) > 1:
                # Which of them it was: each once more, alone.
                for record in mutated:
                    _run_file(_alone(record, records), config, report)
                return
            report.violations.append(f"{place}: {mutated[0].mutation}: {type(error).__name__}: {error}"[:300])
            report.outcomes.setdefault(str(mutated[0].mutation), Counter())["violation"] += 1
            return
        if written := sorted({path.name for path in Path(name).iterdir()} - {"source.tfrecord", "lake"}):
            report.violations.append(f"{place}: wrote {written} beside the lake")
    for record in records:
        if record.mutation is None:
            _check_intact(record, result, place, report)
        else:
            report.outcomes.setdefault(record.mutation, Counter())[_outcome(record, result, place, report)] += 1


def _build(source: Path, decode: bool) -> _Result:
    """Build the file as a real build does, and read back what the lake has."""
    result = _Result()
    url = str(source.parent / "lake")
    store = Store(url)
    prepare_lake(store, "quantised")
    try:
        index = index_source(str(source))
    except LakeError as error:
        result.refused = str(error)
        return result
    config = BuildConfig(max_quarantined=1.0, allow_truncated=True)
    for plan in plan_segments([index]):
        if build_segment(plan, url, config).outcome == "failed":
            result.failed += json.loads(store.read(f"_failed/train/{plan.segment}.json"))["quarantine"]
    if publish_snapshot(store) == 0:
        return result
    lake = open_lake(url)
    result.rows = lake.scan("quarantine").to_table().to_pylist()
    counts: dict[tuple[str, int], list[int]] = {}
    for row in lake.scan("point", ["segment", "timestamp_us", "x_m", "y_m", "z_m"]).to_table().to_pylist():
        key = row["segment"], row["timestamp_us"]
        counts[key] = [len(row["x_m"]), 0, 0, 0]
        if not np.isfinite([row["x_m"], row["y_m"], row["z_m"]]).all():
            result.unusable.add(key)
    for column, table in enumerate(("image", "label", "label_3d"), start=1):
        for row in lake.scan(table, ["segment", "timestamp_us"]).to_table().to_pylist():
            counts[row["segment"], row["timestamp_us"]][column] += 1
    result.frames = {key: tuple(found) for key, found in counts.items()}
    if decode:
        result.told = [problem for _, problems in verify(lake, decode=True) for problem in problems]
    return result


def _check_extents(source: Path, place: str, report: MutationReport) -> None:
    """Every byte of the file is in exactly one slot or gap."""
    position = 0
    with RecordFile(str(source)) as file:
        for found in file.slots():
            if found.offset != position:
                report.violations.append(f"{place}: bytes {position} to {found.offset} are in no slot and no gap")
            position = found.end if isinstance(found, Slot) else found.offset + found.length
        if position != file.size:
            report.violations.append(f"{place}: the last {file.size - position} bytes are in no slot and no gap")


def _expected(payload: bytes) -> tuple[int, ...]:
    """Return (points, images, 2D labels, 3D labels) of an intact frame, counted by the official parser."""
    frame = dataset_pb2.Frame.FromString(payload)
    points = 0
    for message, name in _compressed_fields(frame):
        if name == "range_image_compressed":
            image = dataset_pb2.MatrixFloat.FromString(zlib.decompress(getattr(message, name)))
            points += int((np.array(image.data)[::4] > 0).sum())
    return points, len(frame.images), sum(len(group.labels) for group in frame.camera_labels), len(frame.laser_labels)


def _overlapping(record: _Record, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        row
        for row in rows
        if row["byte_offset"] < record.end and record.start < row["byte_offset"] + row["byte_length"]
    ]


def _check_intact(record: _Record, result: _Result, place: str, report: MutationReport) -> None:
    found = result.frames.get(record.key)
    if found is None:
        report.violations.append(f"{place}: the intact frame {record.key} is not in the lake ({result.refused})")
    elif found != (expected := _expected(record.payload)):
        report.violations.append(f"{place}: the intact frame {record.key} has {found} rows instead of {expected}")
    elif any(row["scope"] == "part" for row in _overlapping(record, result.rows)):
        report.violations.append(f"{place}: the intact frame {record.key} has part faults")


def _outcome(record: _Record, result: _Result, place: str, report: MutationReport) -> str:
    rows = _overlapping(record, result.rows)
    # A changed name or time makes another frame of it.
    present = record.key in result.frames or record.claim in result.frames
    if {record.key, record.claim} & result.unusable:
        report.violations.append(f"{place}: {record.mutation} of {record.key} left positions that are not finite")
        return "violation"
    if present and not rows and any(f" at {record.key[1]} " in told for told in result.told):
        return "told by verify"
    if present and not rows and record.mutation not in _ALWAYS_NOTICED:
        return "kept whole"
    if rows:
        return "kept with part faults" if present else "quarantined"
    if not present and (result.refused or _overlapping(record, result.failed)):
        return "failed"
    report.violations.append(f"{place}: {record.mutation} of {record.key} went unnoticed")
    return "violation"


def print_report(report: MutationReport, console: Console) -> None:
    """Print one row per kind of mutation, and every violation."""
    outcomes = (*_OUTCOMES, "violation")
    table = Table(title=f"{report.records} mutated records in {report.files} files, {report.seconds:.0f} s")
    table.add_column("mutation")
    for name in ("records", *outcomes):
        table.add_column(name, justify="right")
    for kind in [*_MUTATIONS, "all"]:
        counts = sum(report.outcomes.values(), Counter()) if kind == "all" else report.outcomes.get(kind, Counter())
        table.add_row(
            kind,
            str(sum(counts.values())),
            *(str(counts[name]) for name in outcomes),
            end_section=kind in _LAST_OF_GROUP,
        )
    console.print(table)
    for violation in report.violations:
        console.print(f"violation: {violation}", markup=False, highlight=False)


def main() -> None:
    """Run the study from the command line; exits with 1 on any violation."""
    report = run_study(tyro.cli(MutationConfig, description=__doc__))
    print_report(report, Console(width=140))
    sys.exit(1 if report.violations else 0)


if __name__ == "__main__":
    main()
