"""The name and time of a frame from its first bytes, without the megabytes behind them."""

from __future__ import annotations

from typing import NamedTuple

# Field numbers of `Frame` and `Context` in dataset.proto.
_CONTEXT, _TIMESTAMP, _NAME = 1, 2, 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The prefix ends, or breaks, before the fields that were looked for."""


def peek_frame(prefix: bytes) -> tuple[str, int]:
    """Return (context.name, timestamp_micros) of the serialized `Frame` that starts with `prefix`.

    Raises WireError where they do not both stand within it; the whole message then has to be parsed.
    """
    name: str | None = None
    position = 0
    while position < len(prefix):
        field, kind, position = _tag(prefix, position)
        if field == _TIMESTAMP and kind == _VARINT:
            timestamp, position = read_varint(prefix, position)
            if name is None:
                raise WireError("the timestamp stands before the context")
            return name, timestamp
        start, position = _value(prefix, position, kind)
        if field == _CONTEXT and kind == _BYTES:
            name = _context_name(prefix[start:position])
    raise WireError("the prefix ends before the timestamp")


class Field(NamedTuple):
    """A field of a message: its number, its wire type, and its bytes where it has a length, else those it takes."""

    number: int
    kind: int
    value: bytes


def read_fields(message: bytes) -> list[Field]:
    """Return the fields of a whole message, in order; raises WireError where it is none."""
    fields = []
    position = 0
    while position < len(message):
        number, kind, position = _tag(message, position)
        start, position = _value(message, position, kind)
        if position > len(message) or not number:
            raise WireError("the message ends inside a field")
        fields.append(Field(number, kind, message[start:position]))
    return fields


def _context_name(context: bytes) -> str:
    position = 0
    while position < len(context):
        field, kind, position = _tag(context, position)
        start, position = _value(context, position, kind)
        if field == _NAME and kind == _BYTES:
            if position > len(context):
                break
            try:
                return context[start:position].decode()
            except UnicodeDecodeError as error:
                raise WireError("the context's name is not text") from error
    raise WireError("the context has no name")


def _tag(data: bytes, position: int) -> tuple[int, int, int]:
    tag, position = read_varint(data, position)
    return tag >> 3, tag & 7, position


def _value(data: bytes, position: int, kind: int) -> tuple[int, int]:
    """Return (start, end) of the field's value; the end may lie beyond the prefix."""
    if kind == _BYTES:
        length, position = read_varint(data, position)
        return position, position + length
    if kind == _VARINT:
        return position, read_varint(data, position)[1]
    if kind in (_FIXED64, _FIXED32):
        return position, position + (8 if kind == _FIXED64 else 4)
    raise WireError(f"unknown wire type {kind}")


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return (value, position behind it) of the unsigned varint at `position`; raises WireError."""
    value = 0
    for byte in range(10):
        if position + byte >= len(data):
            break
        value |= (data[position + byte] & 0x7F) << (7 * byte)
        if data[position + byte] < 0x80:
            return value, position + byte + 1
    raise WireError("the bytes end inside an integer")
