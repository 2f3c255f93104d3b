"""Detections written for Waymo's tools, read by the official protocol buffers."""

from __future__ import annotations

import numpy as np
from waymo_open_dataset import dataset_pb2, label_pb2
from waymo_open_dataset.protos import metrics_pb2

from datalake.sample import SampleKey
from datalake.sources.waymo_v1.objects import objects_message


def test_images_joined_are_one_message_with_every_detection() -> None:
    first = objects_message(
        SampleKey("one", 1_500_000_000_000_000, "SIDE_LEFT"),
        np.array([[10, 20, 30, 60], [0, 0, 4, 2]], np.float32),
        np.array([4, 1]),
        np.array([0.75, 0.5], np.float32),
    )
    none = objects_message(
        SampleKey("one", 2, "FRONT"), np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, np.float32)
    )
    other = objects_message(
        SampleKey("two", 3, "FRONT"), np.array([[1, 1, 2, 2]], np.float32), np.array([2]), np.array([0.25], np.float32)
    )
    read = metrics_pb2.Objects.FromString(first + none + other).objects
    assert [(one.context_name, one.frame_timestamp_micros, one.score) for one in read] == [
        ("one", 1_500_000_000_000_000, 0.75), ("one", 1_500_000_000_000_000, 0.5), ("two", 3, 0.25)
    ]  # fmt: skip
    assert [dataset_pb2.CameraName.Name.Name(one.camera_name) for one in read] == ["SIDE_LEFT", "SIDE_LEFT", "FRONT"]
    assert [label_pb2.Label.Type.Name(one.object.type) for one in read] == [
        "TYPE_CYCLIST", "TYPE_VEHICLE", "TYPE_PEDESTRIAN"
    ]  # fmt: skip
    box = read[0].object.box
    assert (box.center_x, box.center_y, box.length, box.width) == (20, 40, 20, 40)
    assert not box.HasField("heading")
