"""What a frame has beside images, points and boxes: projected boxes and keypoints."""

from __future__ import annotations

from collections.abc import Sequence

from datalake.sources.frame import CAMERAS, Fault, Keypoint, ProjectedLabel, camera_named
from datalake.sources.label import projected_label
from datalake.sources.waymo_v2.component import KEYPOINT_FIELDS
from datalake.sources.waymo_v2.component_file import Row


def read_projected_labels(
    rows: Sequence[Row], cameras: frozenset[str], faults: list[Fault]
) -> tuple[ProjectedLabel, ...]:
    """Return the boxes around projected 3D labels in the images of `cameras`."""
    labels = []
    for row in rows:
        camera = camera_of(row)
        if camera is None or camera not in cameras:
            continue
        checked = projected_label(camera, row.key("laser_object_id") or "", row.value("type") or 0, box_2d(row), faults)
        if checked is not None:
            labels.append(checked)
    return tuple(sorted(labels, key=lambda label: CAMERAS.index(label.camera)))


def read_keypoints(
    of_cameras: Sequence[Row], of_lasers: Sequence[Row], cameras: frozenset[str]
) -> tuple[Keypoint, ...]:
    """Return the keypoints of 2D labels in the images of `cameras`, and those of 3D labels."""
    keypoints = []
    for row in of_cameras:
        camera = camera_of(row)
        if camera in cameras:
            keypoints += _keypoints(row, "camera_keypoints", camera, row.key("camera_object_id") or "")
    keypoints.sort(key=lambda keypoint: CAMERAS.index(keypoint.camera))
    for row in of_lasers:
        keypoints += _keypoints(row, "lidar_keypoints", None, row.key("laser_object_id") or "")
    return tuple(keypoints)


def camera_of(row: Row) -> str | None:
    """Return the camera that a row belongs to, or None where there is no such."""
    return camera_named(row.key("camera_name") or 0)


def box_2d(row: Row) -> dict[str, float | None]:
    """Return a 2D box; x lies along the image's width, what the records call `length`."""
    return {
        "center_x": row.value("box.center.x"),
        "center_y": row.value("box.center.y"),
        "length": row.value("box.size.x"),
        "width": row.value("box.size.y"),
    }


def _keypoints(row: Row, prefix: str, camera: str | None, object_id: str) -> list[Keypoint]:
    kinds = row.value(f"{prefix}[*].type") or []
    columns = {field: row.value(f"{prefix}[*].{name}") for field, name in KEYPOINT_FIELDS.items()}
    return [
        Keypoint(
            camera,
            object_id,
            kind,
            **{field: values[place] for field, values in columns.items() if values and place < len(values)},
        )
        for place, kind in enumerate(kinds)
        if kind is not None
    ]
