"""Every real record in one lake, against what the official package makes of the same bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datalake.schema import QUANTUM_PER_M, TABLES
from datalake.sources.frame import LASERS
from tests.lakes import Built, build_files

_ROUNDING_M = 0.5 / QUANTUM_PER_M
# The official float32 path is itself off by up to 9 mm where it goes through map coordinates, as TOP does.
_TOLERANCE_M = {"TOP": 0.02}
_OTHERS_M = 1e-4
_FILES = ("kitti_000008", "waymo_fullsize")


@dataclass(frozen=True)
class Official:
    """One frame: the official package's arrays, and the lake's rows for it."""

    expected: dict[str, NDArray[Any]]
    point: dict[str, Any]
    depth: dict[str, Any]
    labels: dict[str, dict[str, Any]]

    def returns(self) -> list[tuple[str, int, NDArray[np.bool_]]]:
        """Return each (laser, return) that the official package has, with the lake's points that belong to it."""
        laser, number = np.array(self.point["laser"]), np.array(self.point["return_index"])
        return [
            (name, index, (laser == LASERS.index(name)) & (number == index))
            for name in LASERS
            for index in (1, 2)
            if name is not None and f"{name}_r{index}_points" in self.expected
        ]

    def column(self, *names: str) -> NDArray[Any]:
        """Return columns of the point row as an array [N, len(names)]."""
        return np.stack([np.array(self.point[name]) for name in names], axis=1)


@pytest.fixture(scope="module")
def built(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """One lake of real files; others there may be of the same segments."""
    names = ("kitti_000008_as_waymo", "waymo_front_segment", "waymo_fullsize_raycast", "waymo_one_frame_no_lidar")
    sources = [str(real_data / f"{name}.tfrecord") for name in names]
    return build_files(str(tmp_path_factory.mktemp("golden") / "lake"), sources)


@pytest.fixture(scope="module", params=_FILES)
def official(request: pytest.FixtureRequest, built: Built, real_data: Path) -> Official:
    """The official result for one of the frames that have lidar."""
    with np.load(real_data / f"{request.param}_official.npz") as arrays:
        expected = {name: arrays[name] for name in arrays.files}
    segment = expected["context"].item()

    def rows(table: str) -> list[dict[str, Any]]:
        return [row for row in built.rows(table) if row["segment"] == segment]

    (point,) = rows("point")
    (depth,) = [row for row in rows("depth") if row["camera"] == "FRONT"]
    labels = {row["object_id"]: row for row in rows("label") if row["camera"] == "FRONT"}
    return Official(expected, point, depth, labels)


def test_every_record_is_in_the_lake_and_none_in_quarantine(built: Built) -> None:
    counts = {table: built.lake.scan(table).count_rows() for table in TABLES}
    assert (counts["image"], counts["point"], counts["quarantine"]) == (141, 133, 0)
    assert [report.outcome for report in built.reports] == ["committed"] * 4


def test_frame_has_the_official_time(official: Official) -> None:
    assert official.point["timestamp_us"] == official.expected["timestamp_micros"]


def test_point_counts_are_equal(official: Official) -> None:
    found = {(name, index): int(mask.sum()) for name, index, mask in official.returns()}
    expected = {(name, index): len(official.expected[f"{name}_r{index}_points"]) for name, index in found}
    assert found == expected
    assert sum(found.values()) == len(official.point["x_m"])


def test_positions_are_within_the_official_error_and_the_own_rounding(official: Official) -> None:
    xyz_m = official.column("x_m", "y_m", "z_m").astype(np.float64)
    for name, index, mask in official.returns():
        error = np.abs(xyz_m[mask] - official.expected[f"{name}_r{index}_points"])
        assert error.max() <= _TOLERANCE_M.get(name, _OTHERS_M) + _ROUNDING_M, (name, index)


def test_projections_are_identical(official: Official) -> None:
    found = official.column("camera_1", "u_1", "v_1", "camera_2", "u_2", "v_2")
    for name, index, mask in official.returns():
        np.testing.assert_array_equal(found[mask], official.expected[f"{name}_r{index}_cp"])


@pytest.mark.parametrize(("column", "key"), [("intensity", "intensity"), ("elongation", "elongation")])
def test_sensor_values_are_identical(official: Official, column: str, key: str) -> None:
    found = official.column(column)[:, 0].astype(np.float32)
    for name, index, mask in official.returns():
        np.testing.assert_array_equal(found[mask], official.expected[f"{name}_r{index}_{key}"])


def test_no_label_zones_are_identical(official: Official) -> None:
    found = official.column("no_label_zone")[:, 0]
    for name, index, mask in official.returns():
        np.testing.assert_array_equal(found[mask], official.expected[f"{name}_r{index}_nlz"] == 1)


def test_depth_list_of_front_is_equal(official: Official) -> None:
    depth = official.depth
    order = np.lexsort((depth["depth_m"], depth["v"], depth["u"]))
    expected = official.expected
    expected_order = np.lexsort((expected["depth_range_camera"], expected["depth_v"], expected["depth_u"]))
    np.testing.assert_array_equal(np.array(depth["u"])[order], expected["depth_u"][expected_order])
    np.testing.assert_array_equal(np.array(depth["v"])[order], expected["depth_v"][expected_order])
    np.testing.assert_allclose(
        np.array(depth["depth_m"])[order], expected["depth_range_camera"][expected_order], rtol=0, atol=0.02
    )


def test_depth_list_of_front_names_the_points_of_the_official_lasers(official: Official) -> None:
    index = np.array(official.depth["point"])
    for column, key in (("laser", "depth_laser"), ("return_index", "depth_return")):
        found = np.array(official.point[column])[index]
        np.testing.assert_array_equal(np.bincount(found), np.bincount(official.expected[key]))


def test_label_boxes_are_equal(official: Official) -> None:
    names = official.expected["label_id"]
    found = [[official.labels[name][edge] for edge in ("x0", "y0", "x1", "y1")] for name in names]
    np.testing.assert_allclose(found, official.expected["label_box"], rtol=1e-6)


def test_label_depths_are_within_five_millimetres(official: Official) -> None:
    for name, expected in zip(official.expected["label_id"], official.expected["label_mean_range_camera"], strict=True):
        found = official.labels[name]["depth_m"]
        assert (found is None and np.isnan(expected)) or found == pytest.approx(expected, abs=0.005)


def test_label_point_counts_are_equal(official: Official) -> None:
    found = {name: official.labels[name]["depth_points"] for name in official.expected["label_id"]}
    assert found == dict(zip(official.expected["label_id"], official.expected["label_n"], strict=True))


def test_every_official_label_is_the_only_one_of_its_name(official: Official) -> None:
    assert set(official.labels) == set(official.expected["label_id"])


def test_every_point_has_its_cell_of_the_range_image(official: Official) -> None:
    if "TOP_r1_rowcol" not in official.expected:
        pytest.skip("the official result of this file has no cells")
    for name, index, mine in official.returns():
        cells = official.column("range_row", "range_column")[mine]
        assert (cells == official.expected[f"{name}_r{index}_rowcol"]).all()
