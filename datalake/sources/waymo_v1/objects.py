"""Detections as Waymo's tools read them: `Objects` of metrics.proto."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datalake.sample_key import SampleKey
from datalake.sources.frame import CAMERAS
from datalake.sources.waymo_v1.protos import metrics_pb2


def objects_message(
    key: SampleKey,
    boxes: NDArray[np.float32],
    types: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> bytes:
    """Return the N detections of one image as a serialized `Objects`; those of several images are simply joined.

    boxes: [N, 4], x0, y0, x1, y1 in pixels of the record's image
    types: [N], official numbers, 1 VEHICLE, 2 PEDESTRIAN, 3 SIGN, 4 CYCLIST
    scores: [N] within 0 … 1
    """
    message = metrics_pb2.Objects()
    for (x0, y0, x1, y1), kind, score in zip(boxes.tolist(), types.tolist(), scores.tolist(), strict=True):
        one = message.objects.add(
            context_name=key.segment,
            frame_timestamp_micros=key.timestamp_us,
            camera_name=CAMERAS.index(key.camera),
            score=score,
        )
        one.object.type = kind
        # Of a 2D box the length is its extent along the image's width.
        box = one.object.box
        box.center_x, box.center_y, box.length, box.width = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
    return bytes(message.SerializeToString())
