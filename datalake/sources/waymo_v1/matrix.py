"""Waymo's compressed matrices: zlib of a serialized `MatrixFloat` or `MatrixInt32`, straight to numpy.

Going through the protobuf runtime's Python lists costs up to 100 times more than reading the packed field's
bytes, so the two message types (`repeated data = 1 [packed]`, `Shape shape = 2 { repeated int32 dims = 1 }`;
source: `waymo_open_dataset/dataset.proto`) are walked here on the wire.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from datalake.sources.lidar import LidarError
from datalake.sources.waymo_v1.wire import WireError, read_varint

# The largest valid matrix is TOP's pixel pose: 64 x 2650 x 6 float32, 4 MB. Nothing beyond this is inflated.
MAX_MATRIX_BYTES = 16 << 20
_SHAPE_BYTES = 64
_MAX_DIMS = 8
_DATA_TAG, _SHAPE_TAG, _PACKED_DIMS_TAG, _DIM_TAG = 0x0A, 0x12, 0x0A, 0x08


class MatrixError(LidarError):
    """The bytes are not a compressed matrix, or not the one they declare."""


def decode_float_matrix(compressed: bytes) -> NDArray[np.float32]:
    """Return the float32 array of a compressed `MatrixFloat`, in its declared shape (read-only view)."""
    data, shape = _inflate(compressed)
    if len(data) != 4 * math.prod(shape):
        raise MatrixError(f"expected {math.prod(shape)} floats for shape {shape}, got {len(data)} bytes")
    return np.frombuffer(data, "<f4").reshape(shape)


def decode_int_matrix(compressed: bytes) -> NDArray[np.int32]:
    """Return the int32 array of a compressed `MatrixInt32`, in its declared shape."""
    data, shape = _inflate(compressed)
    values = decode_varints(np.frombuffer(data, np.uint8))
    if len(values) != math.prod(shape):
        raise MatrixError(f"expected {math.prod(shape)} integers for shape {shape}, got {len(values)}")
    return values.reshape(shape)


def decode_varints(packed: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the int32 values [N] of a packed protobuf field, given its bytes [M] (M >= N)."""
    continued = packed >= 0x80
    if len(packed) and continued[-1]:
        raise MatrixError("packed integers end inside a value")
    if not continued.any():
        return packed.astype(np.int32)
    if not (continued[1:] & continued[:-1]).any():
        # Pixel coordinates stay below 2**14, hence two bytes: whole-array arithmetic, then one selection.
        low = np.zeros(len(packed), np.uint16)
        np.multiply(packed[:-1] & 0x7F, continued[:-1], out=low[1:])
        shift = np.zeros(len(packed), np.uint16)
        np.multiply(continued[:-1], np.uint16(7), out=shift[1:])
        return ((packed.astype(np.uint16) << shift) | low)[~continued].astype(np.int32)
    ends = np.flatnonzero(~continued).astype(np.int32)
    lengths = np.diff(ends, prepend=np.int32(-1))
    if lengths.max() > 10:
        raise MatrixError("packed integers hold a value of more than 10 bytes")
    starts = ends - lengths + np.int32(1)
    del ends
    # A negative int32 travels as its 64-bit two's complement: its lower half, the first five bytes, is the value.
    values = (packed[starts] & 0x7F).astype(np.uint32)
    for byte in range(1, min(5, int(lengths.max()))):
        has = np.flatnonzero(lengths > byte)
        values[has] |= (packed[starts[has] + byte] & 0x7F).astype(np.uint32) << np.uint32(7 * byte)
    return values.view(np.int32)


def _inflate(compressed: bytes) -> tuple[bytes, tuple[int, ...]]:
    """Return the packed data field and the shape; inflates no byte more than the message declares."""
    stream = zlib_ng.decompressobj()
    try:
        head = stream.decompress(compressed, 16)
        size, start = _read_header(head)
        # What the message declares is its data; beyond it only the few bytes of the shape may follow.
        limit = start + size + _SHAPE_BYTES
        body = head + stream.decompress(stream.unconsumed_tail, limit + 1 - len(head))
    except zlib_ng.error as error:  # type: ignore[misc]  # the stub lacks its base class
        raise MatrixError(f"zlib: {error}") from error
    if len(body) > limit:
        raise MatrixError(f"inflates beyond the {size} bytes of data that it declares")
    if not stream.eof:
        raise MatrixError("compressed bytes are cut off")
    if len(body) < start + size:
        raise MatrixError(f"declares {size} bytes of data but holds {len(body) - start}")
    try:
        return body[start : start + size], _read_shape(body[start + size :])
    except WireError as error:
        raise MatrixError(f"has a damaged shape: {error}") from error


def _read_header(head: bytes) -> tuple[int, int]:
    """Return (bytes of packed data, offset at which they start)."""
    if not head or head[0] != _DATA_TAG:
        raise MatrixError("does not start with the packed data of a matrix")
    try:
        size, start = read_varint(head, 1)
    except WireError as error:
        raise MatrixError(f"has a damaged header: {error}") from error
    if size > MAX_MATRIX_BYTES:
        raise MatrixError(f"declares {size} bytes, more than the {MAX_MATRIX_BYTES} any range image can have")
    return size, start


def _read_shape(message: bytes) -> tuple[int, ...]:
    """Return the dimensions of a serialized `Shape` field, packed or not."""
    if not message or message[0] != _SHAPE_TAG:
        raise MatrixError("has no shape behind its data")
    length, position = read_varint(message, 1)
    end = position + length
    if end != len(message):
        raise MatrixError("has other bytes than its shape behind its data")
    dims: list[int] = []
    while position < end:
        tag, position = message[position], position + 1
        stop = position
        if tag == _PACKED_DIMS_TAG:
            length, position = read_varint(message, position)
            stop = position + length
        elif tag == _DIM_TAG:
            stop = position + 1
        else:
            raise MatrixError(f"has an unknown field in its shape (tag {tag})")
        if stop > end:
            raise MatrixError("has a shape that ends inside itself")
        while position < stop:
            value, position = read_varint(message, position)
            if value > MAX_MATRIX_BYTES:
                raise MatrixError(f"has a dimension of {value} in its shape")
            dims.append(value)
    if not 0 < len(dims) <= _MAX_DIMS:
        raise MatrixError(f"has {len(dims)} dimensions in its shape")
    return tuple(dims)
