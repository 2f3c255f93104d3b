"""What a record has beside images, points and boxes: projected boxes, keypoints, the map."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datalake.sources.frame import CAMERAS, Fault, Keypoint, MapFeature, ProjectedLabel, camera_named
from datalake.sources.label import projected_label

_PARTS = ("center_x", "center_y", "length", "width")
# Where a feature of a kind has its points (`map.proto`): a line, an outline, or one place.
_POINTS = ("polyline", "polygon", "position")


def read_projected_labels(record: Any, cameras: frozenset[str], faults: list[Fault]) -> tuple[ProjectedLabel, ...]:
    """Return the boxes around projected 3D labels in the images of `cameras`."""
    labels = []
    for group in record.projected_lidar_labels:
        camera = camera_named(group.name)
        if camera is None or camera not in cameras:
            continue
        for label in group.labels:
            box = {part: getattr(label.box, part) if label.box.HasField(part) else None for part in _PARTS}
            # The id of the 3D label, and the camera.
            object_id = label.id.removesuffix(f"_{camera}") if isinstance(label.id, str) else label.id
            checked = projected_label(camera, object_id, label.type, box, faults)
            if checked is not None:
                labels.append(checked)
    return tuple(sorted(labels, key=lambda label: CAMERAS.index(label.camera)))


def read_keypoints(record: Any, cameras: frozenset[str]) -> tuple[Keypoint, ...]:
    """Return the keypoints of 2D labels in the images of `cameras`, and those of 3D labels."""
    keypoints = []
    for group in record.camera_labels:
        camera = camera_named(group.name)
        if camera in cameras:
            # An id that is not text is told with the label.
            for label in (label for label in group.labels if isinstance(label.id, str)):
                keypoints += [_keypoint(camera, label.id, point) for point in label.camera_keypoints.keypoint]
    keypoints.sort(key=lambda keypoint: CAMERAS.index(keypoint.camera))
    for label in (label for label in record.laser_labels if isinstance(label.id, str)):
        keypoints += [_keypoint(None, label.id, point) for point in label.laser_keypoints.keypoint]
    return tuple(keypoints)


def read_map(record: Any) -> tuple[MapFeature, ...]:
    """Return the features of the map, which one frame of a segment has."""
    features = []
    for feature in record.map_features:
        kind = feature.WhichOneof("feature_data")
        if kind is not None:
            xyz_m = _points(getattr(feature, kind))
            features.append(MapFeature(feature.id, kind, xyz_m, feature.SerializeToString(deterministic=True)))
    return tuple(features)


def _keypoint(camera: str | None, object_id: str, message: Any) -> Keypoint:
    place = message.keypoint_3d
    keypoint = Keypoint(camera, object_id, message.type)
    if place.HasField("location_m"):
        at, occluded = place.location_m, place.visibility.is_occluded
        keypoint = replace(keypoint, x_m=at.x, y_m=at.y, z_m=at.z, occluded_3d=occluded)
    # Keypoints of 3D labels have no pixel.
    if camera is not None and message.keypoint_2d.HasField("location_px"):
        pixel, occluded = message.keypoint_2d.location_px, message.keypoint_2d.visibility.is_occluded
        keypoint = replace(keypoint, u_px=pixel.x, v_px=pixel.y, occluded_2d=occluded)
    return keypoint


def _points(data: Any) -> NDArray[np.float64]:
    """Return the points float64 [3, n] of a feature."""
    for name in _POINTS:
        if name in data.DESCRIPTOR.fields_by_name:
            points = [getattr(data, name)] if name == "position" else getattr(data, name)
            return np.array([(point.x, point.y, point.z) for point in points], np.float64).reshape(-1, 3).T
    return np.zeros((3, 0))
