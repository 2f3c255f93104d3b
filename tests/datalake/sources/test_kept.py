"""What a record says beside points, boxes and pixels is in the lake, value for value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from waymo_open_dataset.protos.map_pb2 import MapFeature

from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.tfrecord import RecordFile, Slot
from tests.frames import make_frame
from tests.lakes import Built, build_files, build_frames

_CAMERAS = (None, "FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT")
_LASERS = (None, "TOP", "FRONT", "SIDE_LEFT", "SIDE_RIGHT", "REAR")


def given(message: Any, name: str) -> Any:
    """Return a field that the message states, else None."""
    return {field.name: value for field, value in message.ListFields()}.get(name)


@pytest.fixture(scope="module")
def source(real_data: Path) -> str:
    """A record with something in every field."""
    return str(real_data / "waymo_v2_as_v1.tfrecord")


@pytest.fixture(scope="module")
def built(source: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The lake of it."""
    return build_files(str(tmp_path_factory.mktemp("kept") / "lake"), [source])


@pytest.fixture(scope="module")
def record(source: str) -> Any:
    """The record itself."""
    with RecordFile(source) as file:
        return dataset_pb2.Frame.FromString(next(file.read(slot) for slot in file.slots() if isinstance(slot, Slot)))


def test_timing_and_velocity_of_every_image_are_kept(built: Built, record: Any) -> None:
    images = {_CAMERAS[image.name]: image for image in record.images}
    for row in built.rows("image"):
        image = images[row["camera"]]
        times = (image.pose_timestamp, image.camera_trigger_time, image.camera_readout_done_time, image.shutter)
        names = ("pose_time_s", "trigger_time_s", "readout_done_time_s", "shutter_s")
        assert tuple(row[name] for name in names) == times
        speed = image.velocity
        assert row["velocity"] == [speed.v_x, speed.v_y, speed.v_z, speed.w_x, speed.w_y, speed.w_z]
        assert any(row["velocity"])


def test_the_pose_of_the_frame_is_kept(built: Built, record: Any) -> None:
    (row,) = built.rows("point")
    assert row["vehicle_to_world"] == list(record.pose.transform)


def test_associations_and_tracking_difficulties_are_kept(built: Built, record: Any) -> None:
    expected = {
        (_CAMERAS[group.name], label.id): (
            label.association.laser_object_id or None,
            given(label, "tracking_difficulty_level"),
        )
        for group in record.camera_labels
        for label in group.labels
    }
    found = {
        (row["camera"], row["object_id"]): (row["lidar_object_id"], row["tracking_difficulty"])
        for row in built.rows("label")
    }
    assert found == expected
    assert any(lidar_object_id for lidar_object_id, _ in found.values())
    assert {difficulty for _, difficulty in found.values()} == {None, 2}


def test_motion_and_camera_synced_boxes_are_kept(built: Built, record: Any) -> None:
    labels = {label.id: label for label in record.laser_labels}
    synced = 0
    for row in built.rows("label_3d"):
        label = labels[row["object_id"]]
        motion, box = label.metadata, label.camera_synced_box
        assert row["speed_z_mps"] == given(motion, "speed_z")
        assert [row[f"acceleration_{axis}_mps2"] for axis in "xyz"] == [
            given(motion, f"accel_{axis}") for axis in "xyz"
        ]
        assert (row["top_lidar_points"], row["tracking_difficulty"]) == (
            given(label, "num_top_lidar_points_in_box"),
            given(label, "tracking_difficulty_level"),
        )
        assert row["most_visible_camera"] == (label.most_visible_camera_name or None)
        if label.HasField("camera_synced_box"):
            synced += 1
            center = [box.center_x, box.center_y, box.center_z]
            assert row["camera_synced_box"] == [*center, box.length, box.width, box.height, box.heading]
        else:
            assert row["camera_synced_box"] is None
    assert synced


def test_calibrations_of_all_sensors_are_kept(built: Built, record: Any) -> None:
    rows = {(row["kind"], row["sensor"]): row for row in built.rows("calibration")}
    assert len(rows) == len(record.context.camera_calibrations) + len(record.context.laser_calibrations)
    for camera in record.context.camera_calibrations:
        row = rows["camera", _CAMERAS[camera.name]]
        assert row["sensor_to_vehicle"] == list(camera.extrinsic.transform)
        assert row["intrinsic"] == list(camera.intrinsic)
        assert (row["width"], row["height"]) == (camera.width, camera.height)
        assert row["rolling_shutter_direction"] == given(camera, "rolling_shutter_direction")
    for laser in record.context.laser_calibrations:
        row = rows["laser", _LASERS[laser.name]]
        assert row["sensor_to_vehicle"] == list(laser.extrinsic.transform)
        assert row["inclination_rad"] == list(laser.beam_inclinations)
        bounds = (row["lowest_inclination_rad"], row["highest_inclination_rad"])
        assert bounds == (laser.beam_inclination_min, laser.beam_inclination_max)


def test_projected_boxes_are_kept_as_they_are(built: Built, record: Any) -> None:
    expected = {}
    for group in record.projected_lidar_labels:
        camera = _CAMERAS[group.name]
        for label in group.labels:
            box, object_id = label.box, label.id.removesuffix(f"_{camera}")
            expected[camera, object_id] = (box.center_x, box.center_y, box.length, box.width)
    rows = {(row["camera"], row["lidar_object_id"]): row for row in built.rows("projected_label")}
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        center = (row["x0"] + row["x1"]) / 2, (row["y0"] + row["y1"]) / 2
        assert (*center, row["x1"] - row["x0"], row["y1"] - row["y0"]) == pytest.approx(expected[key], rel=1e-12)
    assert {object_id for _, object_id in rows} <= {row["object_id"] for row in built.rows("label_3d")}


def test_keypoints_of_images_and_lidar_are_kept(built: Built, record: Any) -> None:
    found: dict[tuple[str | None, str], list[tuple[Any, ...]]] = {}
    for row in built.rows("keypoint"):
        place = (row["u_px"], row["v_px"]) if row["camera"] else (row["x_m"], row["y_m"], row["z_m"])
        found.setdefault((row["camera"], row["object_id"]), []).append((row["keypoint"], *place))
    expected: dict[tuple[str | None, str], list[tuple[Any, ...]]] = {}
    for group in record.camera_labels:
        for label in group.labels:
            for point in label.camera_keypoints.keypoint:
                pixel = point.keypoint_2d.location_px
                expected.setdefault((_CAMERAS[group.name], label.id), []).append((point.type, pixel.x, pixel.y))
    for label in record.laser_labels:
        for point in label.laser_keypoints.keypoint:
            place = point.keypoint_3d.location_m
            expected.setdefault((None, label.id), []).append((point.type, place.x, place.y, place.z))
    assert found == expected
    assert {camera is None for camera, _ in found} == {True, False}


def test_the_map_of_the_first_frame_is_kept_once(tmp_path: Path) -> None:
    frames = [make_frame(0), make_frame(1)]
    for frame in frames:
        lane = frame.map_features.add(id=7).lane
        lane.speed_limit_mph = 25
        for x in (1.0, 2.0):
            lane.polyline.add(x=x, y=3.0, z=4.0)
        frame.map_features.add(id=8).stop_sign.position.x = 5.0
    lane_row, sign_row = build_frames(tmp_path, frames).rows("map")
    assert (lane_row["feature_id"], lane_row["kind"]) == (7, "lane")
    assert (lane_row["x_m"], lane_row["y_m"], lane_row["z_m"]) == ([1.0, 2.0], [3.0, 3.0], [4.0, 4.0])
    assert MapFeature.FromString(lane_row["message"]).lane.speed_limit_mph == 25
    assert (sign_row["kind"], sign_row["x_m"]) == ("stop_sign", [5.0])
