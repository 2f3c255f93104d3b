"""Labels are read in the order of the network's outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from teachers.spvnas.classes import CLASSES, IGNORED, read_semantickitti_labels
from teachers.spvnas.scan import Scan


def test_moving_objects_are_of_their_kind_and_unknown_ones_are_ignored(tmp_path: Path) -> None:
    np.array([10, 252, 40 | 7 << 16, 0, 60, 13], np.uint32).tofile(tmp_path / "000000.label")
    car, road = CLASSES.index("car"), CLASSES.index("road")
    assert read_semantickitti_labels(tmp_path / "000000.label").tolist() == [car, car, road, *[IGNORED] * 3]


def test_a_real_scans_road_lies_below_its_vegetation(real_data: Path, scan: Scan) -> None:
    labels = read_semantickitti_labels(real_data / "semantickitti_000000.label")
    assert len(labels) == len(scan)
    assert (labels != IGNORED).mean() > 0.9
    height = {name: float(np.median(scan.xyz_m[labels == CLASSES.index(name), 2])) for name in ("road", "vegetation")}
    assert height["road"] < -1.5 < height["vegetation"]
