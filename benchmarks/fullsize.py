"""A segment of full-size frames, no two alike, made from the one real full-size record.

The images, calibrations, labels and poses of every frame are the record's own. The range images are turned
about the vehicle by a random angle, and their intensities, elongations and projections shifted a little, frame
by frame: a compressor that looks back to the frame before finds nothing it has seen, as in a real drive.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng import zlib_ng

from datalake.commit import LakeError
from datalake.sources.waymo_v1.matrix import decode_float_matrix, decode_int_matrix
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.tfrecord import RecordFile, Slot, write_records
from datalake.synthetic.matrix import varints

SOURCE = Path(__file__).resolve().parents[2] / "shared" / "data" / "waymo_fullsize_raycast.tfrecord"
_STEP_US = 100_000
# The level whose output is nearest to the size of the original (2 % larger), at a quarter of level 6's time.
_LEVEL = 3
# What the sensor's values are multiples of: changes by whole steps keep them as compressible as they were.
_INTENSITY_STEP, _ELONGATION_STEP = 2.0**-9, 0.005855325


def write_fullsize_segment(path: str, frames: int, source: str = str(SOURCE), seed: int = 0) -> None:
    """Write one segment of `frames` full-size frames, 0.1 s apart, to the TFRecord file `path`.

    A frame has five images and 201k points, of which TOP has 154k + 25k, in 5.2 MB. The same seed gives the
    same bytes; another seed, another segment. Raises LakeError where `source` is missing.
    """
    if not Path(source).is_file():
        raise LakeError(f"{source}: the full-size record is missing; the real inputs have to be there")
    with RecordFile(source) as file:
        payload = next(file.read(slot) for slot in file.slots() if isinstance(slot, Slot))
    write_records(path, _frames(payload, frames, seed))


def _frames(payload: bytes, frames: int, seed: int) -> Iterator[bytes]:
    record = dataset_pb2.Frame.FromString(payload)
    returns = [message for laser in record.lasers for message in (laser.ri_return1, laser.ri_return2)]
    ranges = [decode_float_matrix(message.range_image_compressed) for message in returns]
    projections = [decode_int_matrix(message.camera_projection_compressed) for message in returns]
    record.context.name = f"fullsize_{seed}"
    for index in range(frames):
        if index:
            _advance(record)
        random = np.random.default_rng((seed, index))
        turn, steps, shift_px = random.random(), random.integers(0, 16, 2), random.integers(-15, 1, 2, np.int32)
        for message, image, projection in zip(returns, ranges, projections, strict=True):
            columns = int(turn * image.shape[1])
            turned = np.roll(image, columns, axis=1)
            turned[..., 1:3] += (turned[..., :1] > 0) * steps * (_INTENSITY_STEP, _ELONGATION_STEP)
            seen = np.roll(projection, columns, axis=1)
            for slot in (0, 3):
                seen[..., slot + 1 : slot + 3] += (seen[..., slot, None] > 0) * shift_px
            message.range_image_compressed = _compress(turned.tobytes(), dataset_pb2.MatrixFloat, turned.shape)
            pixels = varints(np.maximum(seen, 0).ravel())
            message.camera_projection_compressed = _compress(pixels, dataset_pb2.MatrixInt32, seen.shape)
        yield record.SerializeToString(deterministic=True)


def _advance(record: Any) -> None:
    """Move a `dataset_pb2.Frame` one step on in time."""
    record.timestamp_micros += _STEP_US
    for image in record.images:
        for name in ("pose_timestamp", "camera_trigger_time", "camera_readout_done_time"):
            setattr(image, name, getattr(image, name) + _STEP_US / 1e6)


def _compress(packed: bytes, kind: Any, shape: tuple[int, ...]) -> bytes:
    """Return zlib of the `MatrixFloat` or `MatrixInt32` whose packed `data`, field 1, is given."""
    rest = kind()
    rest.shape.dims.extend(shape)
    return zlib_ng.compress(b"\x0a" + varints(np.array([len(packed)])) + packed + rest.SerializeToString(), _LEVEL)
