"""One frame to its rows: the schema, the depths, and what quantisation may cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from datalake.convert import CameraPoints, camera_points, frame_rows, label_depth
from datalake.schema import QUANTUM_PER_M, TABLES, PointMode
from datalake.sources.frame import CAMERAS, Frame, Label2D, Points
from datalake.sources.waymo_v1.parse import parse_frame
from tests.frames import make_frame

_BOUNDED = settings(max_examples=100, deadline=None, derandomize=True)
_ALL = frozenset(camera for camera in CAMERAS if camera)
_METRES = hnp.arrays(np.float32, st.tuples(st.just(3), st.integers(0, 8)), elements=st.floats(-500, 500, width=32))


def _frame() -> Frame:
    return parse_frame(make_frame().SerializeToString(), _ALL)


def _points(xyz_m: NDArray[np.float32]) -> Points:
    count = xyz_m.shape[1]
    return Points(
        xyz_m=xyz_m,
        intensity=np.zeros(count, np.float32),
        elongation=np.zeros(count, np.float32),
        laser=np.ones(count, np.int8),
        return_index=np.ones(count, np.int8),
        no_label_zone=np.zeros(count, np.bool_),
        camera=np.zeros((2, count), np.int8),
        u=np.zeros((2, count), np.int16),
        v=np.zeros((2, count), np.int16),
        semantic_class=None,
        instance_id=None,
    )


def _stored_xyz(xyz_m: NDArray[np.float32], mode: PointMode) -> NDArray[np.float32]:
    frame = Frame("a", 1, None, None, None, (), _points(xyz_m), (), (), ())
    row = frame_rows(frame, mode)["point"]
    return np.array([row[name][0].as_py() for name in ("x_m", "y_m", "z_m")], np.float32).reshape(3, -1)


def test_rows_follow_the_schema() -> None:
    for name, rows in frame_rows(_frame(), "quantised").items():
        rows.validate(full=True)
        assert rows.schema.equals(TABLES[name])


def test_frame_without_anything_has_one_empty_point_row() -> None:
    frame = Frame("a", 1, None, None, None, (), Points.empty(), (), (), ())
    rows = frame_rows(frame, "quantised")
    assert {name: batch.num_rows for name, batch in rows.items()} == {
        "image": 0,
        "point": 1,
        "label": 0,
        "label_3d": 0,
        "depth": 0,
        "projected_label": 0,
        "keypoint": 0,
    }
    assert rows["point"]["x_m"][0].as_py() == []


@_BOUNDED
@given(_METRES)
def test_quantised_positions_are_within_half_a_step(xyz_m: NDArray[np.float32]) -> None:
    error = np.abs(_stored_xyz(xyz_m, "quantised").astype(np.float64) - xyz_m)
    assert error.max(initial=0) <= 0.5 / QUANTUM_PER_M


@_BOUNDED
@given(_METRES)
def test_quantised_positions_are_whole_steps_without_negative_zeros(xyz_m: NDArray[np.float32]) -> None:
    stored = _stored_xyz(xyz_m, "quantised")
    np.testing.assert_array_equal(stored * QUANTUM_PER_M % 1, 0)
    assert not np.signbit(stored[stored == 0]).any()


@_BOUNDED
@given(_METRES)
def test_lossless_positions_are_bit_by_bit_the_same(xyz_m: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(_stored_xyz(xyz_m, "lossless").view(np.uint32), xyz_m.view(np.uint32))


def test_conversion_leaves_the_frame_as_it_is() -> None:
    frame = _frame()
    before = frame.points.xyz_m.copy()
    frame_rows(frame, "quantised")
    np.testing.assert_array_equal(frame.points.xyz_m, before)


def test_depth_is_the_distance_from_the_camera_before_quantisation() -> None:
    frame = _frame()
    rows = frame_rows(frame, "quantised")["depth"]
    for number, image in enumerate(frame.images):
        assert image.camera_to_vehicle is not None
        index = rows["point"][number].as_py()
        away = frame.points.xyz_m[:, index].astype(np.float64) - image.camera_to_vehicle[:3, 3:]
        assert rows["depth_m"][number].as_py() == pytest.approx(np.linalg.norm(away, axis=0), abs=1e-5)


def test_point_is_found_in_both_of_its_projection_slots() -> None:
    frame = _frame()
    points = frame.points
    for image in frame.images:
        assert image.camera_to_vehicle is not None
        number = CAMERAS.index(image.camera)
        seen = camera_points(points, image.camera, image.camera_to_vehicle)
        expected = [
            (index, points.u[slot, index], points.v[slot, index])
            for index in range(len(points))
            for slot in (0, 1)
            if points.camera[slot, index] == number
        ]
        assert list(zip(seen.point, seen.u, seen.v, strict=True)) == expected
        assert {slot for slot in (0, 1) if (points.camera[slot] == number).any()}


def _seen(pixels: list[tuple[int, int]], depth_m: list[float]) -> CameraPoints:
    u, v = np.array(pixels, np.int16).reshape(-1, 2).T
    return CameraPoints(np.arange(len(pixels), dtype=np.int32), u, v, np.array(depth_m, np.float32))


def _box(x0: float, y0: float, x1: float, y1: float) -> Label2D:
    return Label2D("FRONT", "a", "VEHICLE", x0, y0, x1, y1, 0)


def test_bounds_of_a_box_are_inclusive() -> None:
    corners = [(2, 3), (7, 3), (2, 8), (7, 8)]
    outside = [(1, 5), (8, 5), (5, 2), (5, 9)]
    _, _, count = label_depth(_box(2, 3, 7, 8), _seen(corners + outside, [5.0] * 8))
    assert count == 4


def test_label_depth_is_mean_and_median() -> None:
    assert label_depth(_box(0, 0, 9, 9), _seen([(1, 1), (2, 2), (3, 3)], [1.0, 2.0, 9.0])) == (4.0, 2.0, 3)


def test_box_without_a_point_has_no_depth() -> None:
    assert label_depth(_box(0, 0, 1, 1), _seen([(5, 5)], [1.0])) == (None, None, 0)


def test_label_counts_the_points_of_the_depth_row() -> None:
    rows = frame_rows(_frame(), "quantised")
    label, depth = rows["label"].to_pylist()[0], rows["depth"].to_pylist()[0]
    # The box covers the whole image of FRONT.
    assert (label["camera"], depth["camera"], label["depth_points"]) == ("FRONT", "FRONT", len(depth["u"]))
    assert label["depth_m"] == pytest.approx(np.mean(depth["depth_m"]), abs=1e-5)


def test_label_of_a_camera_without_calibration_has_no_depth() -> None:
    record = make_frame()
    del record.context.camera_calibrations[:]
    rows = frame_rows(parse_frame(record.SerializeToString(), _ALL), "quantised")
    found = rows["label"].to_pylist()[0]
    assert (found["depth_m"], found["depth_median_m"], found["depth_points"]) == (None, None, 0)
    assert rows["depth"].num_rows == rows["image"].num_rows == 2


def test_matrices_are_stored_row_by_row() -> None:
    frame = _frame()
    image = frame_rows(frame, "quantised")["image"].to_pylist()[0]
    assert frame.images[0].camera_to_vehicle is not None
    assert image["camera_to_vehicle"][3::4] == [*frame.images[0].camera_to_vehicle[:3, 3], 1.0]
    assert len(image["intrinsic"]) == 9
