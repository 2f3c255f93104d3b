"""What a file is that holds no Waymo segment, from its first bytes and its first record."""

from __future__ import annotations

from datalake.sources.waymo_v1.wire import Field, WireError, read_fields

# The beginning of a file -> what it is, and what to do.
_MAGIC = (
    (b"PAR1", "it is Parquet; name the folder that has the components of Waymo 2.x, whose files end in .parquet"),
    (b"PK\x03\x04", "it is a zip archive; unpack it and name the TFRecords in it"),
    (b"version https://git-lfs", "it is a pointer of Git LFS; fetch what it stands for with `git lfs pull`"),
    (b"<!doctype", "it is a web page, perhaps of a login; download the file itself"),
    (b"<html", "it is a web page, perhaps of a login; download the file itself"),
    (b"<?xml", "it is XML, perhaps a store's answer that it failed; download the file itself"),
)
_TAR_OFFSET, _TAR = 257, b"ustar"
HEAD_BYTES = 512
_VARINT, _FIXED64, _BYTES = 0, 1, 2
# Fields of a `Frame` and of its `Context`, of an `Example` and of its `Features`, which all start with these.
_FIRST, _SECOND = 1, 2
# `scenario_id` of a `Scenario` (scenario.proto).
_SCENARIO_ID = 5

EXAMPLE = "tf.Example records"
SEQUENCE_EXAMPLE = "tf.SequenceExample records"
E2E_FRAME = "frames of Waymo's end-to-end driving dataset"
SCENARIO = "scenarios of Waymo's motion dataset"


def kind_of_file(head: bytes) -> str | None:
    """Return what a file with these first bytes is, and what to do; None: nothing that is known."""
    for magic, kind in _MAGIC:
        if head.lstrip()[: len(magic)].lower() == magic.lower():
            return kind
    if head[_TAR_OFFSET : _TAR_OFFSET + len(_TAR)] == _TAR:
        return "it is a tar archive; unpack it and name the TFRecords in it"
    return None


def kind_of_record(payload: bytes) -> str | None:
    """Return what a record with this payload is, if it is of another kind than `Frame`s, and known."""
    try:
        fields = read_fields(payload)
        first = [field for field in fields if field.number == _FIRST]
        if not first:
            return None
        if any(field.number == _SCENARIO_ID and field.kind == _BYTES for field in fields) and _is_times(first[0]):
            return SCENARIO
        if first[0].kind != _BYTES:
            return None
        inside = read_fields(first[0].value)
        if not inside or any(field.number != _FIRST or field.kind != _BYTES for field in inside):
            # In a `Frame` the name is the only field of that number, and others follow.
            return E2E_FRAME if _is_frame(inside) else None
        if not all(_is_entry(field.value) for field in inside):
            return None
        return SEQUENCE_EXAMPLE if any(f.number == _SECOND and f.kind == _BYTES for f in fields) else EXAMPLE
    except WireError:
        return None


def _is_times(field: Field) -> bool:
    """Return whether a field holds doubles, packed or not."""
    return field.kind == _FIXED64 or (field.kind == _BYTES and len(field.value) % 8 == 0)


def _is_entry(value: bytes) -> bool:
    """Return whether bytes are an entry of a map from text to messages."""
    try:
        return [(field.number, field.kind) for field in read_fields(value)] == [(_FIRST, _BYTES), (_SECOND, _BYTES)]
    except WireError:
        return False


def _is_frame(fields: list[Field]) -> bool:
    """Return whether fields are those of a `Frame`: a context, whose first field is text, and a time."""
    return (
        len(fields) > 1
        and (fields[0].number, fields[0].kind) == (_FIRST, _BYTES)
        and any((field.number, field.kind) == (_SECOND, _VARINT) for field in fields)
    )
