"""Waymo's compressed matrices: zlib of a serialized `MatrixFloat` or `MatrixInt32`.

The wire format is written directly: passing a million numbers through protobuf's Python lists costs more
than casting the rays does.
"""

from __future__ import annotations

import numpy as np
from zlib_ng import zlib_ng

from datalake.sources.waymo_v1.protos import dataset_pb2

_DATA_TAG = b"\x0a"  # field 1, length-delimited: `repeated … data = 1 [packed = true]`
_LEVEL = 1


def compress_floats(values: np.ndarray) -> bytes:
    """Return zlib of the `MatrixFloat` that holds `values` as float32."""
    return _compress(np.ascontiguousarray(values, "<f4").tobytes(), dataset_pb2.MatrixFloat, values.shape)


def compress_ints(values: np.ndarray) -> bytes:
    """Return zlib of the `MatrixInt32` that holds `values`, none of them negative."""
    return _compress(varints(values.ravel()), dataset_pb2.MatrixInt32, values.shape)


def varints(values: np.ndarray) -> bytes:
    """Return protobuf's variable-length encoding of non-negative integers [N] below 2^31."""
    left = values.astype(np.uint32)
    width = max(-(-int(left.max(initial=0)).bit_length() // 7), 1)
    groups = np.empty((len(left), width), np.uint8)
    used = np.ones((len(left), width), bool)
    for position in range(width):
        used[:, position] = (left > 0) | (position == 0)
        groups[:, position] = left & 0x7F
        left >>= 7
        groups[:, position] |= (left > 0).astype(np.uint8) << 7
    return groups[used].tobytes()


def _compress(packed: bytes, message: type, shape: tuple[int, ...]) -> bytes:
    empty = message()
    empty.shape.dims.extend(shape)
    length = varints(np.array([len(packed)]))
    return bytes(zlib_ng.compress(_DATA_TAG + length + packed + empty.SerializeToString(), _LEVEL))
