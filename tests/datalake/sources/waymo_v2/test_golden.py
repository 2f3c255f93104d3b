"""A frame that the official 2.x classes wrote, against the official points and against its twin of 1.x."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datalake.build import BuildConfig
from datalake.source_list import list_sources
from tests.lakes import Built, build_files

_LASERS = ("TOP", "FRONT", "SIDE_LEFT", "SIDE_RIGHT", "REAR")
_RETURNS = [(number, name, index) for number, name in enumerate(_LASERS, start=1) for index in (1, 2)]
# The official float32 path is itself off where it goes through map coordinates, as TOP does.
_TOLERANCE_M = {"TOP": 0.02}
_OTHERS_M = 1e-4
_CONFIG = BuildConfig(points="lossless")
# What the official conversion to 2.x writes where the record of 1.x has nothing.
_DEFAULTS = {"tracking_difficulty": 0, "speed_z_mps": 0.0, "acceleration_z_mps2": 0.0}


@pytest.fixture(scope="module")
def built(components: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The lake of the components."""
    return build_files(str(tmp_path_factory.mktemp("v2") / "lake"), list_sources([str(components)]), _CONFIG)


@pytest.fixture(scope="module")
def twin(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The lake of the same frame as a record of 1.x."""
    source = str(real_data / "waymo_v2_as_v1.tfrecord")
    return build_files(str(tmp_path_factory.mktemp("v1") / "lake"), [source], _CONFIG)


@pytest.fixture(scope="module")
def official(components: Path) -> dict[str, NDArray[Any]]:
    """What the official 2.x code makes of the components."""
    with np.load(components / "official_points.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize(
    "table", ["image", "point", "label", "label_3d", "depth", "calibration", "projected_label", "keypoint"]
)
def test_both_versions_of_a_frame_give_the_same_rows(built: Built, twin: Built, table: str) -> None:
    expected = [
        {name: _DEFAULTS.get(name) if value is None else value for name, value in row.items()}
        for row in twin.rows(table)
    ]
    assert built.rows(table) == expected
    assert expected


def test_an_intact_segment_has_no_faults(built: Built) -> None:
    assert built.faults == []
    assert built.report.missing == []


def test_the_commit_names_the_format(built: Built, twin: Built) -> None:
    assert (built.lake.commits[0].format, twin.lake.commits[0].format) == ("waymo_v2", "waymo_v1")


def test_every_return_is_where_the_official_code_has_it(built: Built, official: dict[str, NDArray[Any]]) -> None:
    (row,) = built.rows("point")
    point = {name: np.array(values) for name, values in row.items() if isinstance(values, list)}
    xyz_m = np.stack([point["x_m"], point["y_m"], point["z_m"]], 1)
    assert len(xyz_m) == sum(len(official[f"{name}_r{index}_points"]) for _, name, index in _RETURNS)
    for number, name, index in _RETURNS:
        mine = (point["laser"] == number) & (point["return_index"] == index)
        expected = official[f"{name}_r{index}_points"]
        error_m = np.linalg.norm(xyz_m[mine] - expected, axis=1)
        assert error_m.max() < _TOLERANCE_M.get(name, _OTHERS_M)
        for column in ("intensity", "elongation"):
            assert (point[column][mine] == official[f"{name}_r{index}_{column}"]).all()


def test_projections_and_classes_are_the_official_ones(built: Built, official: dict[str, NDArray[Any]]) -> None:
    (row,) = built.rows("point")
    point = {name: np.array(values) for name, values in row.items() if isinstance(values, list)}
    names = ("camera_1", "u_1", "v_1", "camera_2", "u_2", "v_2")
    for number, name, index in _RETURNS:
        mine = (point["laser"] == number) & (point["return_index"] == index)
        assert (np.stack([point[one][mine] for one in names], 1) == official[f"{name}_r{index}_cp"]).all()
    for index in (1, 2):
        mine = (point["laser"] == 1) & (point["return_index"] == index)
        labels = np.stack([point["instance_id"][mine], point["semantic_class"][mine]], 1)
        assert (labels == official[f"TOP_r{index}_seg"]).all()
