"""Lasers to points: what a record has, in order, and a fault for what it lacks."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from datalake.sources.frame import Fault, Points
from datalake.sources.lidar import MAX_RANGE_M
from datalake.sources.waymo_v1.lidar import read_laser_calibrations, read_points, read_transform
from tests.frames import (
    COLUMNS,
    FRONT,
    FRONT_LASER,
    ROWS,
    SIDE_LEFT,
    TOP,
    float_matrix,
    int_matrix,
    make_frame,
    read_float_matrix,
    read_int_matrix,
)
from tests.reference import slow_point


def _read(frame: Any) -> tuple[Points, list[str]]:
    """Return the points of a frame, and the messages of its faults."""
    faults: list[Fault] = []
    points = read_points(frame, read_laser_calibrations(frame), read_transform(frame.pose), faults)
    assert {fault.stage for fault in faults} <= {"lidar"}
    return points, [fault.message for fault in faults]


def _counts(points: Points) -> dict[tuple[int, int], int]:
    """Return the number of points by (laser, return)."""
    keys, counts = np.unique(np.stack((points.laser, points.return_index)), axis=1, return_counts=True)
    return {(int(laser), int(number)): int(count) for (laser, number), count in zip(keys.T, counts, strict=True)}


def _returns(frame: Any) -> dict[tuple[int, int], Any]:
    """Return the range image messages by (laser, return)."""
    return {
        (laser.name, number): message
        for laser in frame.lasers
        for number, message in ((1, laser.ri_return1), (2, laser.ri_return2))
    }


def _expected_counts(frame: Any) -> dict[tuple[int, int], int]:
    return {
        key: int((read_float_matrix(message.range_image_compressed)[..., 0] > 0).sum())
        for key, message in _returns(frame).items()
    }


def _change(message: Any, change: Callable[[Any], None]) -> None:
    """Change the range image of a return."""
    image = read_float_matrix(message.range_image_compressed)
    change(image)
    message.range_image_compressed = float_matrix(image)


def test_every_cell_with_a_range_is_a_point() -> None:
    frame = make_frame()
    points, faults = _read(frame)
    assert _counts(points) == _expected_counts(frame)
    assert faults == []


def test_positions_of_all_lasers_are_the_reference() -> None:
    frame = make_frame()
    points, _ = _read(frame)
    vehicle_to_world = np.array(frame.pose.transform).reshape(4, 4)
    poses = read_float_matrix(frame.lasers[0].ri_return1.range_image_pose_compressed)
    expected = []
    for (laser, _), message in _returns(frame).items():
        calibration = frame.context.laser_calibrations[laser - 1]
        uniform = -0.6 + (np.arange(ROWS) + 0.5) / ROWS * 0.9
        image = read_float_matrix(message.range_image_compressed)
        for row, column in np.argwhere(image[..., 0] > 0):
            point = slow_point(
                row,
                column,
                float(image[row, column, 0]),
                ascending=np.array(calibration.beam_inclinations) if laser == TOP else uniform,
                columns=COLUMNS,
                laser_to_vehicle=np.array(calibration.extrinsic.transform).reshape(4, 4),
                pixel_pose=poses[row, column] if laser == TOP else None,
                vehicle_to_world=vehicle_to_world,
            )
            expected.append(point)
    np.testing.assert_allclose(points.xyz_m.T, expected, rtol=0, atol=2e-4)


def test_values_of_each_point_are_those_of_its_cell() -> None:
    frame = make_frame()
    points, _ = _read(frame)
    images = [read_float_matrix(message.range_image_compressed) for message in _returns(frame).values()]
    cells = np.concatenate([image[image[..., 0] > 0] for image in images])
    np.testing.assert_array_equal(points.intensity, cells[:, 1])
    np.testing.assert_array_equal(points.elongation, cells[:, 2])
    np.testing.assert_array_equal(points.no_label_zone, cells[:, 3] == 1)


def test_projections_of_each_point_are_those_of_its_cell() -> None:
    frame = make_frame()
    points, _ = _read(frame)
    stored = np.concatenate(
        [
            read_int_matrix(message.camera_projection_compressed)[
                read_float_matrix(message.range_image_compressed)[..., 0] > 0
            ]
            for message in _returns(frame).values()
        ]
    )
    np.testing.assert_array_equal(points.camera, stored[:, [0, 3]].T)
    np.testing.assert_array_equal(points.u, stored[:, [1, 4]].T)
    np.testing.assert_array_equal(points.v, stored[:, [2, 5]].T)


def test_lasers_and_calibrations_may_come_in_any_order() -> None:
    frame = make_frame()
    shuffled = make_frame()
    for field, source in (
        (shuffled.lasers, frame.lasers),
        (shuffled.context.laser_calibrations, frame.context.laser_calibrations),
    ):
        del field[:]
        field.extend(reversed(source))
    np.testing.assert_array_equal(_read(shuffled)[0].xyz_m, _read(frame)[0].xyz_m)


def test_lasers_without_name_and_bytes_are_a_frame_without_lidar() -> None:
    frame = make_frame()
    del frame.lasers[:]
    for _ in range(5):
        frame.lasers.add()
    points, faults = _read(frame)
    assert (len(points), faults) == (0, [])


def test_missing_second_return_leaves_the_first() -> None:
    frame = make_frame()
    frame.lasers[0].ClearField("ri_return2")
    points, faults = _read(frame)
    assert (TOP, 1) in _counts(points)
    assert faults == ["laser TOP return 2 is left out: it is missing"]


def test_missing_first_return_leaves_the_second() -> None:
    frame = make_frame()
    frame.lasers[0].ri_return1.ClearField("range_image_compressed")
    expected = _expected_counts(make_frame())
    del expected[TOP, 1]
    points, faults = _read(frame)
    assert _counts(points) == expected
    assert faults == ["laser TOP return 1 is left out: it is missing"]


def test_calibrated_laser_that_is_absent_is_reported() -> None:
    frame = make_frame()
    del frame.lasers[1]
    points, faults = _read(frame)
    assert set(points.laser) == {TOP}
    assert faults == ["laser FRONT is calibrated but absent"]


def test_laser_without_calibration_is_left_out_alone() -> None:
    frame = make_frame()
    del frame.context.laser_calibrations[1]
    points, faults = _read(frame)
    assert set(points.laser) == {TOP}
    assert faults == ["laser FRONT is left out: it has no calibration"]


@pytest.mark.parametrize("range_m", [np.nan, np.inf, MAX_RANGE_M + 1, 3e38], ids=str)
def test_impossible_range_costs_its_cell_alone(range_m: float) -> None:
    frame = make_frame()
    expected = _expected_counts(frame)
    expected[FRONT_LASER, 1] -= 1

    def change(image: Any) -> None:
        image[0, 0, 0] = range_m

    _change(frame.lasers[1].ri_return1, change)
    points, faults = _read(frame)
    assert _counts(points) == expected
    assert faults == [
        f"laser FRONT return 1 keeps its other cells: 1 of {ROWS * COLUMNS} cells have a range that is NaN or beyond"
        " 500 m"
    ]


@pytest.mark.parametrize(("channel", "name"), [(1, "intensity"), (2, "elongation")])
def test_point_with_a_value_that_is_not_finite_is_kept_with_zero(channel: int, name: str) -> None:
    frame = make_frame()

    def change(image: Any) -> None:
        image[0, 0, channel] = np.nan

    _change(frame.lasers[0].ri_return1, change)
    points, faults = _read(frame)
    assert _counts(points) == _expected_counts(frame)
    assert getattr(points, name)[0] == 0
    assert len(faults) == 1
    assert name in faults[0]


def test_top_without_pixel_poses_leaves_the_other_lasers() -> None:
    frame = make_frame()
    frame.lasers[0].ri_return1.ClearField("range_image_pose_compressed")
    points, faults = _read(frame)
    assert set(points.laser) == {FRONT_LASER}
    assert faults == ["laser TOP is left out: it has no pixel poses, so ego motion cannot be compensated"]


def test_frame_without_pose_leaves_the_lasers_that_need_none() -> None:
    frame = make_frame()
    frame.ClearField("pose")
    points, faults = _read(frame)
    assert set(points.laser) == {FRONT_LASER}
    assert faults == ["laser TOP is left out: the frame has no pose, so ego motion cannot be compensated"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e6, 0], ids=str)
def test_unusable_pixel_pose_costs_its_cell_alone(value: float) -> None:
    frame = make_frame()
    expected = _expected_counts(frame)
    expected[TOP, 1] -= 1
    if read_float_matrix(frame.lasers[0].ri_return2.range_image_compressed)[0, 0, 0] > 0:
        expected[TOP, 2] -= 1
    top = frame.lasers[0].ri_return1
    poses = read_float_matrix(top.range_image_pose_compressed)
    poses[0, 0, 3:] = value
    top.range_image_pose_compressed = float_matrix(poses)
    points, faults = _read(frame)
    assert np.abs(points.xyz_m).max() < 600
    assert _counts(points) == expected
    assert faults


@pytest.mark.parametrize("value", [np.nan, 1e300], ids=str)
def test_unusable_extrinsic_leaves_no_point_that_is_not_finite(value: float) -> None:
    frame = make_frame()
    frame.context.laser_calibrations[1].extrinsic.transform[3] = value
    points, faults = _read(frame)
    assert np.isfinite(points.xyz_m).all()
    assert set(points.laser) == {TOP}
    assert any("FRONT" in fault for fault in faults)


def test_beam_inclination_that_is_not_finite_leaves_no_point_that_is_not_finite() -> None:
    frame = make_frame()
    frame.context.laser_calibrations[0].beam_inclinations[1] = np.nan
    points, faults = _read(frame)
    assert np.isfinite(points.xyz_m).all()
    assert any("TOP" in fault for fault in faults)


def test_beam_inclinations_for_another_number_of_rows_leave_the_laser_out() -> None:
    frame = make_frame()
    del frame.context.laser_calibrations[0].beam_inclinations[0]
    points, faults = _read(frame)
    assert set(points.laser) == {FRONT_LASER}
    assert faults == [f"laser TOP is left out: calibration has 3 beam inclinations for {ROWS} rows"]


def test_calibration_without_any_inclination_leaves_the_laser_out() -> None:
    # Its points would otherwise all lie at inclination 0.
    frame = make_frame()
    frame.context.laser_calibrations[1].ClearField("beam_inclination_min")
    frame.context.laser_calibrations[1].ClearField("beam_inclination_max")
    points, faults = _read(frame)
    assert set(points.laser) == {TOP}
    assert any("FRONT" in fault for fault in faults)


def test_unknown_laser_is_reported() -> None:
    frame = make_frame()
    frame.lasers.add().ri_return1.range_image_compressed = frame.lasers[1].ri_return1.range_image_compressed
    points, faults = _read(frame)
    assert _counts(points) == _expected_counts(make_frame())
    assert faults == ["a laser has the unknown name 0"]


def test_second_laser_of_a_name_is_reported() -> None:
    frame = make_frame()
    frame.lasers.add().CopyFrom(frame.lasers[1])
    points, faults = _read(frame)
    assert _counts(points) == _expected_counts(make_frame())
    assert faults == ["laser FRONT appears twice; kept the first"]


def test_broken_zlib_of_a_range_image_costs_its_return_alone() -> None:
    frame = make_frame()
    expected = _expected_counts(frame)
    del expected[TOP, 1]
    frame.lasers[0].ri_return1.range_image_compressed = b"x\x9cnot zlib"
    points, faults = _read(frame)
    assert _counts(points) == expected
    assert len(faults) == 1
    assert faults[0].startswith("laser TOP return 1 is left out: zlib")


@pytest.mark.parametrize(
    ("field", "consequence"),
    [
        ("camera_projection_compressed", "is kept without camera projections"),
        ("segmentation_label_compressed", "is kept without segmentation labels"),
    ],
)
@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(b"x\x9cnot zlib", id="no zlib"),
        pytest.param(int_matrix(np.zeros((ROWS, COLUMNS, 5), np.int32)), id="another shape"),
        pytest.param(int_matrix(np.zeros((2, 2, 6), np.int32)), id="another size"),
        # MatrixInt32 { shape { dims: [0, -1] } } with an empty data field, which numpy cannot hold.
        pytest.param(zlib.compress(b"\x0a\x00\x12\x0d\x0a\x0b\x00" + b"\xff" * 9 + b"\x01"), id="negative dimension"),
    ],
)
def test_unusable_layer_leaves_the_points(field: str, consequence: str, stored: bytes) -> None:
    frame = make_frame()
    setattr(frame.lasers[0].ri_return1, field, stored)
    points, faults = _read(frame)
    assert _counts(points) == _expected_counts(frame)
    assert len(faults) == 1
    assert consequence in faults[0]


def test_points_without_projections_are_in_no_camera() -> None:
    frame = make_frame()
    frame.lasers[0].ri_return1.ClearField("camera_projection_compressed")
    points, faults = _read(frame)
    bare = (points.laser == TOP) & (points.return_index == 1)
    assert not points.camera[:, bare].any()
    assert points.camera[:, ~bare].any()
    assert faults == ["laser TOP return 1 is kept without camera projections: they are missing"]


@pytest.mark.parametrize(
    ("channel", "value"),
    [(0, 6), (0, -1), (1, -5), (2, 1 << 15)],
    ids=["camera 6", "camera -1", "u -5", "v 32768"],
)
def test_projection_that_names_no_pixel_is_dropped_alone(channel: int, value: int) -> None:
    frame = make_frame()
    message = frame.lasers[0].ri_return1
    stored = read_int_matrix(message.camera_projection_compressed)
    stored[0, 0] = (FRONT, 3, 4, SIDE_LEFT, 5, 6)
    stored[0, 0, channel] = value
    message.camera_projection_compressed = int_matrix(stored)
    points, faults = _read(frame)
    assert _counts(points) == _expected_counts(frame)
    assert points.camera[:, 0].tolist() == [0, SIDE_LEFT]
    assert (points.u[:, 0].tolist(), points.v[:, 0].tolist()) == ([0, 5], [0, 6])
    assert faults == [
        "laser TOP return 1 keeps their points without them: 1 camera projections name no camera or no pixel"
    ]


def test_pixels_beside_an_empty_camera_name_are_no_fault() -> None:
    frame = make_frame()
    message = frame.lasers[0].ri_return1
    stored = read_int_matrix(message.camera_projection_compressed)
    stored[0, 0] = (FRONT, 3, 4, 0, -1, -1)
    message.camera_projection_compressed = int_matrix(stored)
    points, faults = _read(frame)
    assert (points.camera[:, 0].tolist(), points.u[:, 0].tolist()) == ([FRONT, 0], [3, 0])
    assert faults == []


@pytest.mark.parametrize(
    "image",
    [np.zeros((ROWS, COLUMNS), np.float32), np.zeros((ROWS, COLUMNS, 3), np.float32)],
    ids=["two dimensions", "three channels"],
)
def test_range_image_of_another_form_costs_its_return(image: Any) -> None:
    frame = make_frame()
    frame.lasers[0].ri_return2.range_image_compressed = float_matrix(image)
    points, faults = _read(frame)
    assert (TOP, 2) not in _counts(points)
    assert (TOP, 1) in _counts(points)
    assert len(faults) == 1


def test_second_return_of_another_size_is_left_out() -> None:
    frame = make_frame()
    frame.lasers[1].ri_return2.range_image_compressed = float_matrix(np.ones((ROWS, COLUMNS + 1, 4), np.float32))
    points, faults = _read(frame)
    assert (FRONT_LASER, 2) not in _counts(points)
    assert faults == ["laser FRONT return 2 is left out: its range image is (4, 9), return 1's is (4, 8)"]


def test_pixel_poses_of_another_size_leave_the_laser_out() -> None:
    frame = make_frame()
    frame.lasers[0].ri_return1.range_image_pose_compressed = float_matrix(np.zeros((ROWS, COLUMNS + 1, 6)))
    points, faults = _read(frame)
    assert set(points.laser) == {FRONT_LASER}
    assert faults == ["laser TOP is left out: expected pixel poses [4, 8, 6], got [4, 9, 6]"]


def test_segmentation_is_instance_then_class() -> None:
    frame = make_frame()
    message = frame.lasers[0].ri_return1
    stored = np.zeros((ROWS, COLUMNS, 2), np.int32)
    stored[0, 0] = (70_000, 14)
    message.segmentation_label_compressed = int_matrix(stored)
    points, faults = _read(frame)
    assert points.semantic_class is not None
    assert points.instance_id is not None
    assert (points.semantic_class[0], points.instance_id[0]) == (14, 70_000)
    assert (len(points.semantic_class), faults) == (len(points), [])


def test_frame_without_segmentation_has_none() -> None:
    points, _ = _read(make_frame())
    assert (points.semantic_class, points.instance_id) == (None, None)


@pytest.mark.parametrize("number", [-1, 23, 300])
def test_unknown_class_leaves_the_segmentation_out(number: int) -> None:
    frame = make_frame()
    message = frame.lasers[0].ri_return1
    stored = np.zeros((ROWS, COLUMNS, 2), np.int32)
    stored[0, 0, 1] = number
    message.segmentation_label_compressed = int_matrix(stored)
    points, faults = _read(frame)
    assert points.semantic_class is None
    assert faults == [
        "laser TOP return 1 is kept without segmentation labels: segmentation labels name classes outside 0 to 22"
    ]
