"""One payload to a frame: the usable parts, and a fault for each of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from datalake.sources.frame import Frame, FrameError
from datalake.sources.panoptic import PANOPTIC_CLASSES
from datalake.sources.segment_name import check_segment_name
from datalake.sources.waymo_v1.parse import parse_frame
from datalake.sources.waymo_v1.protos import camera_segmentation_pb2
from tests.frames import (
    FRONT,
    HEIGHT,
    SEGMENT,
    SIDE_LEFT,
    START_US,
    WIDTH,
    int_matrix,
    jpeg,
    make_frame,
    panoptic_png,
    read_int_matrix,
)

_CAMERAS = frozenset({"FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT"})
_NOT_TEXT = b"\xff\xfe\xfd"


def _parse(record: Any) -> Frame:
    return parse_frame(record.SerializeToString(), _CAMERAS)


def _messages(frame: Frame, stage: str) -> list[str]:
    """Return the messages of the faults, all of which must be of this stage."""
    assert {fault.stage for fault in frame.faults} <= {stage}
    return [fault.message for fault in frame.faults]


def test_frame_has_its_name_time_and_place() -> None:
    frame = _parse(make_frame())
    assert (frame.segment, frame.timestamp_us) == (SEGMENT, START_US)
    assert (frame.location, frame.time_of_day, frame.weather) == ("location_sf", "Day", "sunny")


def test_whole_frame_has_no_faults() -> None:
    assert _parse(make_frame()).faults == ()


def test_image_has_the_bytes_of_the_record() -> None:
    record = make_frame()
    assert [image.jpeg for image in _parse(record).images] == [image.image for image in record.images]


def test_images_and_calibrations_are_joined_by_name() -> None:
    record = make_frame()
    calibrations = list(record.context.camera_calibrations)
    del record.context.camera_calibrations[:]
    record.context.camera_calibrations.extend(reversed(calibrations))
    for image, calibration in zip(_parse(record).images, calibrations, strict=True):
        assert image.camera_to_vehicle is not None
        np.testing.assert_array_equal(image.camera_to_vehicle.ravel(), calibration.extrinsic.transform)


def test_images_come_in_the_order_of_the_cameras() -> None:
    record = make_frame()
    images = list(record.images)
    del record.images[:]
    record.images.extend(reversed(images))
    assert [image.camera for image in _parse(record).images] == ["FRONT", "SIDE_LEFT"]


def test_image_has_the_pose_of_its_own_exposure() -> None:
    record = make_frame()
    image = _parse(record).images[0]
    assert image.vehicle_to_world is not None
    np.testing.assert_array_equal(image.vehicle_to_world.ravel(), record.images[0].pose.transform)


def test_cameras_that_were_not_asked_for_are_left_out_without_a_fault() -> None:
    frame = parse_frame(make_frame().SerializeToString(), frozenset({"SIDE_LEFT"}))
    assert [image.camera for image in frame.images] == ["SIDE_LEFT"]
    assert (frame.labels_2d, frame.faults) == ((), ())


def test_box_length_lies_along_x() -> None:
    record = make_frame()
    box = record.camera_labels[0].labels[0].box
    box.center_x, box.center_y, box.length, box.width = 8, 6, 10, 4
    label = _parse(record).labels_2d[0]
    assert (label.x0, label.y0, label.x1, label.y1) == (3, 4, 13, 8)


def test_labels_have_the_values_of_the_record() -> None:
    frame = _parse(make_frame())
    found = [(label.camera, label.object_id, label.type, label.difficulty) for label in frame.labels_2d]
    assert found == [("FRONT", "box-0", "VEHICLE", 0), ("FRONT", "box-1", "PEDESTRIAN", 1)]
    solid = frame.labels_3d[0]
    assert (solid.object_id, solid.type, solid.lidar_points) == ("solid-0", "CYCLIST", 3)
    assert (solid.length_m, solid.width_m, solid.height_m, solid.heading_rad) == (1.8, 0.6, 1.7, 0.3)
    assert (solid.speed_x_mps, solid.speed_y_mps) == (4.0, -1.0)


def test_what_a_record_does_not_state_is_none() -> None:
    frame = _parse(make_frame())
    (solid,) = frame.labels_3d
    assert (solid.tracking_difficulty, solid.top_lidar_points, solid.speed_z_mps) == (None, None, None)
    assert (solid.acceleration_x_mps2, solid.acceleration_y_mps2, solid.acceleration_z_mps2) == (None, None, None)
    assert {label.tracking_difficulty for label in frame.labels_2d} == {None}
    assert {camera.rolling_shutter_direction for camera in frame.camera_calibrations} == {None}


def test_a_zero_that_a_record_states_is_zero() -> None:
    record = make_frame()
    solid = record.laser_labels[0]
    solid.tracking_difficulty_level = solid.num_top_lidar_points_in_box = 0
    solid.metadata.speed_z = solid.metadata.accel_x = 0.0
    record.camera_labels[0].labels[0].tracking_difficulty_level = 0
    record.context.camera_calibrations[0].rolling_shutter_direction = 0
    frame = _parse(record)
    (label,) = frame.labels_3d
    assert (label.tracking_difficulty, label.top_lidar_points, label.speed_z_mps, label.acceleration_x_mps2) == (0,) * 4
    assert [label.tracking_difficulty for label in frame.labels_2d] == [0, None]
    assert frame.camera_calibrations[0].rolling_shutter_direction == 0


def test_panoptic_label_is_kept_with_its_divisor() -> None:
    record = make_frame()
    png = panoptic_png(np.full((HEIGHT, WIDTH), 2_001, np.uint16))
    record.images[0].camera_segmentation_label.panoptic_label = png
    record.images[0].camera_segmentation_label.panoptic_label_divisor = 1000
    frame = _parse(record)
    assert (frame.images[0].panoptic, frame.images[0].panoptic_divisor) == (png, 1000)
    assert frame.faults == ()


_PNG = panoptic_png(np.full((HEIGHT, WIDTH), 2_001, np.uint16))


@pytest.mark.parametrize(
    ("png", "divisor", "reason"),
    [
        pytest.param(_PNG, 0, "it has no divisor", id="no divisor"),
        pytest.param(jpeg(), 1000, "it is no PNG", id="no PNG"),
        pytest.param(panoptic_png(np.zeros((HEIGHT, WIDTH, 3), np.uint8)), 1000, "its PNG is 8-bit RGB", id="RGB"),
        pytest.param(panoptic_png(np.zeros((HEIGHT, WIDTH), np.uint8)), 1000, "its PNG is 8-bit gray", id="8 bits"),
        pytest.param(panoptic_png(np.zeros((8, 9), np.uint16)), 1000, "it is 9x8, its image 16x16", id="size"),
        pytest.param(_PNG[:-5], 1000, "its PNG is cut off", id="cut off"),
        pytest.param(_PNG[:8], 1000, "its PNG is cut off", id="signature alone"),
        pytest.param(_PNG[:45] + bytes([_PNG[45] ^ 1]) + _PNG[46:], 1000, "fails its CRC", id="a bit"),
    ],
)
def test_panoptic_label_that_cannot_be_used_is_left_out_alone(png: bytes, divisor: int, reason: str) -> None:
    record = make_frame()
    record.images[0].camera_segmentation_label.panoptic_label = png
    record.images[0].camera_segmentation_label.panoptic_label_divisor = divisor
    frame = _parse(record)
    assert [image.camera for image in frame.images] == ["FRONT", "SIDE_LEFT"]
    assert (frame.images[0].panoptic, frame.images[0].panoptic_divisor) == (None, None)
    (message,) = _messages(frame, "image")
    assert message.startswith("panoptic label of FRONT is left out: ")
    assert reason in message


def test_panoptic_classes_are_the_official_ones() -> None:
    assert len(camera_segmentation_pb2.CameraSegmentation.Type.values()) == PANOPTIC_CLASSES


@pytest.mark.parametrize("payload", [b"\xff" * 20, b"\x0a\xff\x01"], ids=["noise", "cut off"])
def test_payload_that_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError, match="not a Waymo Frame"):
        parse_frame(payload, _CAMERAS)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../evil", "/etc/passwd", "a/b", "a\\b", "a\0b", "-rf", ".hidden", "a b", "a\n", "ü", "a" * 201],
    ids=repr,
)
def test_hostile_segment_name_is_refused(name: str) -> None:
    with pytest.raises(FrameError, match="segment name"):
        _parse(make_frame(segment=name))


@pytest.mark.parametrize("name", ["1005081002024129653_5313_150_5333_150", "a", "A.b-c_d", "a" * 200], ids=len)
def test_honest_segment_name_is_accepted(name: str) -> None:
    check_segment_name(name)


@pytest.mark.parametrize("timestamp", [None, 0, -1], ids=str)
def test_frame_without_time_is_refused(timestamp: int | None) -> None:
    record = make_frame()
    record.ClearField("timestamp_micros")
    if timestamp is not None:
        record.timestamp_micros = timestamp
    with pytest.raises(FrameError, match="timestamp"):
        _parse(record)


def test_segment_name_that_is_not_text_is_refused() -> None:
    payload = make_frame(segment="abc").SerializeToString().replace(b"abc", _NOT_TEXT)
    with pytest.raises(FrameError):
        parse_frame(payload, _CAMERAS)


@pytest.mark.parametrize(
    "place",
    [
        lambda record: record.camera_labels[0].labels[0],
        lambda record: record.laser_labels[0],
    ],
    ids=["2D", "3D"],
)
def test_label_whose_id_is_not_text_is_left_out_alone(place: Callable[[Any], Any]) -> None:
    record = make_frame()
    place(record).id = "abc"
    frame = parse_frame(record.SerializeToString().replace(b"abc", _NOT_TEXT), _CAMERAS)
    assert len(frame.labels_2d) + len(frame.labels_3d) == 2
    assert len(_messages(frame, "label")) == 1


def test_weather_that_is_not_text_is_left_out() -> None:
    record = make_frame()
    record.context.stats.weather = "abc"
    frame = parse_frame(record.SerializeToString().replace(b"abc", _NOT_TEXT), _CAMERAS)
    assert frame.weather is None
    assert len(_messages(frame, "frame")) == 1


@pytest.mark.parametrize("values", [[], [1.0] * 15, [np.nan] * 16], ids=["missing", "15 values", "NaN"])
def test_frame_without_usable_pose_is_reported(values: list[float]) -> None:
    record = make_frame(lidar=False)
    del record.pose.transform[:]
    record.pose.transform.extend(values)
    assert _messages(_parse(record), "frame") == ["the frame's pose is missing or not finite"]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        pytest.param(b"", "no bytes", id="empty"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(40), "header cannot be read", id="PNG"),
        pytest.param(jpeg()[:2] + b"\x00" * 30 + jpeg()[32:], "header cannot be read", id="damaged header"),
        pytest.param(jpeg()[:10], "header cannot be read", id="header cut off"),
        pytest.param(jpeg()[:-2] + bytes(100), "no end-of-image marker", id="no end"),
        pytest.param(jpeg(WIDTH, HEIGHT + 1), "its calibration is for 16x16", id="another size"),
    ],
)
def test_broken_jpeg_costs_its_image_alone(broken: bytes, reason: str) -> None:
    record = make_frame()
    record.images[0].image = broken
    frame = _parse(record)
    assert [image.camera for image in frame.images] == ["SIDE_LEFT"]
    (message,) = _messages(frame, "image")
    assert message.startswith("image of FRONT is left out: ")
    assert reason in message


@pytest.mark.parametrize("padding", [bytes(4096), b"\xff" * 100, b" \n" * 50, b"\xff\xd9"], ids=lambda p: repr(p[:2]))
def test_padding_behind_the_end_of_a_jpeg_is_no_fault(padding: bytes) -> None:
    record = make_frame()
    record.images[0].image = jpeg() + padding
    frame = _parse(record)
    assert frame.images[0].jpeg == jpeg() + padding
    assert frame.faults == ()


@pytest.mark.parametrize("thumbnail", [b"", jpeg(8, 8)], ids=["plain", "with a thumbnail"])
def test_a_jpeg_cut_off_anywhere_is_left_out(thumbnail: bytes) -> None:
    record = make_frame()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = jpeg()[:2] + segment + jpeg()[2:]
    kept = []
    for length in range(len(whole)):
        record.images[0].image = whole[:length]
        if "FRONT" in [image.camera for image in _parse(record).images]:
            kept.append(length)
    assert kept == []


def test_end_of_a_thumbnail_is_not_the_end_of_its_jpeg() -> None:
    record = make_frame()
    thumbnail = jpeg(8, 8)
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    record.images[0].image = (jpeg()[:2] + segment + jpeg()[2:])[:-2]
    (message,) = _messages(_parse(record), "image")
    assert message == "image of FRONT is left out: its JPEG is cut off (no end-of-image marker)"


def test_jpeg_that_claims_a_giant_image_is_left_out() -> None:
    record = make_frame()
    broken = bytearray(record.images[0].image)
    start = broken.index(b"\xff\xc0") + 5  # height and width behind length and precision of SOF0
    broken[start : start + 4] = b"\xff\xff\xff\xff"
    record.images[0].image = bytes(broken)
    frame = _parse(record)
    assert [image.camera for image in frame.images] == ["SIDE_LEFT"]
    assert len(_messages(frame, "image")) == 1


def test_damaged_jpeg_headers_never_escape_as_errors() -> None:
    random = np.random.default_rng(0)
    record = make_frame(lidar=False)
    for _ in range(300):
        broken = bytearray(jpeg())
        for position in random.integers(0, 200, 3):
            broken[position] = random.integers(256)
        record.images[0].image = bytes(broken)
        frame = _parse(record)
        assert len(frame.images) + len(frame.faults) >= 2


def test_image_without_calibration_is_kept_and_reported() -> None:
    record = make_frame()
    del record.context.camera_calibrations[0]
    frame = _parse(record)
    assert (frame.images[0].camera, frame.images[0].camera_to_vehicle) == ("FRONT", None)
    assert _messages(frame, "image") == ["camera FRONT has no calibration; image kept without it"]


@pytest.mark.parametrize("part", ["intrinsic", "extrinsic"])
def test_image_with_half_a_calibration_is_kept_and_reported(part: str) -> None:
    record = make_frame()
    record.context.camera_calibrations[0].ClearField(part)
    frame = _parse(record)
    kept = frame.images[0]
    assert (kept.intrinsic is None, kept.camera_to_vehicle is None) == (part == "intrinsic", part == "extrinsic")
    assert _messages(frame, "image") == [f"the {part} of camera FRONT is missing or not finite; image kept without it"]


def test_image_without_pose_is_kept_and_reported() -> None:
    record = make_frame()
    record.images[0].ClearField("pose")
    frame = _parse(record)
    assert frame.images[0].vehicle_to_world is None
    assert _messages(frame, "image") == ["image of FRONT has no finite pose; kept without it"]


def test_second_image_of_a_camera_is_reported() -> None:
    record = make_frame()
    record.images.add().CopyFrom(record.images[1])
    frame = _parse(record)
    assert [image.camera for image in frame.images] == ["FRONT", "SIDE_LEFT"]
    assert _messages(frame, "image") == ["camera SIDE_LEFT appears twice; kept the first image"]


def test_image_without_camera_is_reported() -> None:
    record = make_frame()
    record.images[0].ClearField("name")
    frame = _parse(record)
    assert [image.camera for image in frame.images] == ["SIDE_LEFT"]
    assert _messages(frame, "image") == ["an image has the unknown camera name 0"]


@pytest.mark.parametrize("part", ["center_x", "center_y", "length", "width"])
@pytest.mark.parametrize("value", [None, np.nan, 1e300], ids=str)
def test_2d_label_without_a_whole_box_is_left_out_alone(part: str, value: float | None) -> None:
    record = make_frame()
    box = record.camera_labels[0].labels[0].box
    box.ClearField(part)
    if value is not None:
        setattr(box, part, value)
    frame = _parse(record)
    assert [label.object_id for label in frame.labels_2d] == ["box-1"]
    (message,) = _messages(frame, "label")
    assert "'box-0' of FRONT" in message


@pytest.mark.parametrize("part", ["center_x", "center_y", "center_z", "length", "width", "height", "heading"])
def test_3d_label_without_a_whole_box_is_left_out(part: str) -> None:
    record = make_frame()
    record.laser_labels[0].box.ClearField(part)
    frame = _parse(record)
    assert frame.labels_3d == ()
    assert _messages(frame, "label") == [f"3D label 'solid-0' is left out: its box has no finite {part}"]


@pytest.mark.parametrize("width", [-3, 0])
def test_label_without_an_area_is_left_out(width: float) -> None:
    record = make_frame()
    box = record.camera_labels[0].labels[0].box
    box.length, box.width = 7, width
    frame = _parse(record)
    assert [label.object_id for label in frame.labels_2d] == ["box-1"]
    (message,) = _messages(frame, "label")
    assert message.endswith(f"is left out: its box has no area (7 x {width})")


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 8, 8, 4), (0, 6, 4, 10)),
        ((16, 15, 8, 4), (12, 13, 16, 16)),
        ((8, 8, 100, 100), (0, 0, 16, 16)),
        ((6, 5, 4, 2), (4, 4, 8, 6)),
    ],
    ids=["left", "corner", "all around", "inside"],
)
def test_box_is_clipped_to_its_image(box: tuple[float, ...], expected: tuple[float, ...]) -> None:
    record = make_frame()
    stored = record.camera_labels[0].labels[0].box
    stored.center_x, stored.center_y, stored.length, stored.width = box
    frame = _parse(record)
    label = frame.labels_2d[0]
    assert (label.x0, label.y0, label.x1, label.y1) == expected
    assert frame.faults == ()


@pytest.mark.parametrize("left_edge", [16.0, 400.0, -4.0, 16 - 1e-9], ids=str)
@pytest.mark.parametrize("image", [True, False], ids=["image", "calibration alone"])
def test_box_outside_of_its_image_is_left_out_alone(left_edge: float, image: bool) -> None:
    record = make_frame()
    box = record.camera_labels[0].labels[0].box
    box.center_x, box.length = left_edge + 2, 4
    if not image:
        del record.images[0]
    frame = _parse(record)
    assert [label.object_id for label in frame.labels_2d] == ["box-1"]
    (message,) = _messages(frame, "label")
    assert message.startswith("2D label 'box-0' of FRONT is left out: its box, x ")
    assert message.endswith("lies outside of the image of 16x16")


def test_label_of_unknown_type_is_left_out() -> None:
    record = make_frame()
    record.laser_labels[0].ClearField("type")
    frame = _parse(record)
    assert frame.labels_3d == ()
    assert _messages(frame, "label") == ["3D label 'solid-0' is left out: its type 0 is unknown"]


def test_labels_of_an_unknown_camera_are_reported() -> None:
    record = make_frame()
    record.camera_labels[0].ClearField("name")
    frame = _parse(record)
    assert frame.labels_2d == ()
    assert _messages(frame, "label") == ["2 2D labels belong to the unknown camera 0"]


@pytest.mark.parametrize(("channel", "value"), [(1, WIDTH), (2, HEIGHT), (1, 10 * WIDTH)], ids=["u", "v", "far"])
def test_projection_outside_of_its_image_is_dropped_alone(channel: int, value: int) -> None:
    record = make_frame()
    whole = _parse(record).points
    message = record.lasers[0].ri_return1
    stored = read_int_matrix(message.camera_projection_compressed)
    stored[0, 0, 0], stored[0, 0, channel] = FRONT, value
    message.camera_projection_compressed = int_matrix(stored)
    frame = _parse(record)
    (text,) = _messages(frame, "lidar")
    assert text.startswith("1 of ")
    assert "projections into FRONT lie outside of its image of 16x16" in text
    assert (frame.points.camera[0, 0], frame.points.u[0, 0], frame.points.v[0, 0]) == (0, 0, 0)
    assert frame.points.camera[1, 0] == whole.camera[1, 0]
    np.testing.assert_array_equal(frame.points.camera[:, 1:], whole.camera[:, 1:])
    np.testing.assert_array_equal(frame.points.u[:, 1:], whole.u[:, 1:])


def test_labels_of_an_image_that_is_broken_are_kept() -> None:
    record = make_frame()
    record.images[0].image = b""
    assert len(_parse(record).labels_2d) == 2


def test_labels_come_in_the_order_of_the_cameras() -> None:
    record = make_frame()
    record.camera_labels.add().CopyFrom(record.camera_labels[0])
    record.camera_labels[0].name, record.camera_labels[1].name = SIDE_LEFT, FRONT
    assert [label.camera for label in _parse(record).labels_2d] == ["FRONT"] * 2 + ["SIDE_LEFT"] * 2
