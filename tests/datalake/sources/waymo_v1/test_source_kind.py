"""Files that hold no Waymo segment are called what they are, with what to do."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from waymo_open_dataset.protos import end_to_end_driving_data_pb2, scenario_pb2

from datalake.build import BuildConfig
from datalake.commit import LakeError
from datalake.sources.formats import index_source
from datalake.sources.waymo_v1.tfrecord import CompressedFileError, RecordFile, frame_record
from tests.frames import make_frame, make_frames
from tests.lakes import build_files, write_bytes


def message(*fields: tuple[int, bytes]) -> bytes:
    """Return a protobuf message of fields with a length."""
    return b"".join(bytes([number << 3 | 2, len(value)]) + value for number, value in fields)


# `Features` is `map<string, Feature> feature = 1`, `Feature` is `BytesList bytes_list = 1` (or floats, or integers).
FEATURES = message(
    (1, message((1, b"image/encoded"), (2, message((1, message((1, b"jpeg"))))))),
    (1, message((1, b"label"), (2, message((3, message((1, b"\x07"))))))),
)


def _e2e_frame() -> bytes:
    record = end_to_end_driving_data_pb2.E2EDFrame()
    record.frame.CopyFrom(make_frame(lidar=False))
    record.intent = 1
    return record.SerializeToString()


def _scenario() -> bytes:
    record = scenario_pb2.Scenario(scenario_id="637f20cafde22ff8", timestamps_seconds=[0.0, 0.1, 0.2])
    record.tracks.add(id=1).states.add(center_x=1.0)
    return record.SerializeToString()


def _parquet() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"key.segment_context_name": ["a"]}), stream)
    return stream.getvalue()


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("one.tfrecord"))
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("one.tfrecord", b"")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(frame_record(message((1, FEATURES))), "it holds tf.Example records", id="Example"),
        pytest.param(
            frame_record(message((1, FEATURES), (2, message((1, message((1, b"f"), (2, b""))))))),
            "it holds tf.SequenceExample records",
            id="SequenceExample",
        ),
        pytest.param(frame_record(_e2e_frame()), "it holds frames of Waymo's end-to-end driving dataset", id="E2E"),
        pytest.param(frame_record(_scenario()), "it holds scenarios of Waymo's motion dataset", id="Scenario"),
        pytest.param(_parquet(), "it is Parquet; name the folder that has the components", id="Parquet"),
        pytest.param(_tar(), "it is a tar archive; unpack it", id="tar"),
        pytest.param(_zip(), "it is a zip archive; unpack it", id="zip"),
        pytest.param(b"<!DOCTYPE html><html>Sign in</html>", "it is a web page", id="web page"),
        pytest.param(b"", "it is empty", id="empty"),
        pytest.param(frame_record(make_frame(segment="a b").SerializeToString()), "segment name 'a b'", id="frame"),
        pytest.param(bytes(range(200)), "the first at byte 0: ", id="noise"),
    ],
)
def test_file_of_another_kind_is_called_what_it_is(tmp_path: Path, data: bytes, kind: str) -> None:
    source = write_bytes(tmp_path / "file", data)
    with pytest.raises(
        LakeError, match=re.escape(f"{source}: no record of a Waymo segment in {len(data)} bytes: ")
    ) as e:
        index_source(source)
    assert kind in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "pack",
    [gzip.compress, zlib.compress, lambda data: gzip.compress(data[:5000]) + gzip.compress(data[5000:])],
    ids=["gzip", "zlib", "gzip of two members"],
)
def test_compressed_records_are_read_as_plain_ones(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    plain = b"".join(frame_record(frame.SerializeToString()) for frame in make_frames(3))
    sources = [write_bytes(tmp_path / name, data) for name, data in (("plain", plain), ("packed", pack(plain)))]
    lakes = [build_files(f"{source}.lake", [source]) for source in sources]
    assert lakes[1].report.outcome == "committed"
    for table in ("image", "point", "label", "label_3d", "depth"):
        assert lakes[1].rows(table) == lakes[0].rows(table)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "zlib"])
def test_compressed_file_that_is_damaged_is_refused(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    data = pack(frame_record(make_frame().SerializeToString()))
    middle = len(data) // 2
    broken = data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1 :]
    with pytest.raises(CompressedFileError, match=r"cannot be decompressed to the end .* fetch it again"):
        RecordFile(write_bytes(tmp_path / "file", broken))


@pytest.mark.parametrize("missing", [0, 30], ids=["between records", "inside a record"])
def test_of_a_compressed_file_that_is_cut_off_whole_records_can_be_used(tmp_path: Path, missing: int) -> None:
    first, second = (frame_record(frame.SerializeToString()) for frame in make_frames(2))
    stream = zlib.compressobj(wbits=31)
    begun = stream.compress(first) + stream.flush(zlib.Z_FULL_FLUSH)
    behind = b"" if missing == 0 else (stream.compress(second) + stream.flush())[:-missing]
    source = write_bytes(tmp_path / "file", begun + behind)
    assert index_source(source).cut_off_at == len(first)
    accepted = build_files(f"{source}.lake", [source], BuildConfig(allow_truncated=True, max_quarantined=1.0))
    assert (accepted.report.outcome, accepted.report.frames) == ("committed", 1)
    assert not accepted.lake.commits[0].is_complete
