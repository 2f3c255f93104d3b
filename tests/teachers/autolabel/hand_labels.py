"""Auto-labels made by hand, in a lake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datalake.lake import Lake
from datalake.sample import Sample
from teachers.autolabel.calibration import Calibration, TypeCalibration
from teachers.autolabel.evidence import Evidence
from teachers.autolabel.lidar_objects import LidarObjects
from teachers.autolabel.table import AutoLabels, label_segment, origin_of
from tests.teachers.autolabel.evidences import evidence
from tests.teachers.cards import lidar_card

# A score is the mask teacher's own: the logit of it, over 3, times 3.
_SCORE = (0.0, 3.0, 0.0, 0.0)
VEHICLES = Calibration(
    {"VEHICLE": TypeCalibration(_SCORE, (*_SCORE, 0.0, 0.0, 0.0, 0.0, 0.0), 0.8, 0.7)}, 0.2, precision=0.8
)
_NO_NUMBERS = np.zeros(0, np.float32)
NOTHING = LidarObjects(
    _NO_NUMBERS.reshape(0, 4), np.zeros(0, np.int64), _NO_NUMBERS, _NO_NUMBERS, np.zeros(0, np.int32)
)


@dataclass(frozen=True)
class HandProposer:
    """Says the same of every image."""

    found: Evidence

    def propose(self, samples: Sequence[Sample]) -> list[tuple[Evidence, LidarObjects]]:
        return [(self.found, NOTHING)] * len(samples)


FOUND = evidence(
    {"mask_score": 0.9, "depth_m": 15.0},
    {"mask_score": 0.5, "boxes": (30.0, 10.0, 60.0, 40.0)},
    {"mask_score": 0.1, "boxes": (60.0, 10.0, 90.0, 40.0)},
    {"mask_score": 0.75, "agreement": 0.3, "boxes": (40.0, 20.0, 50.0, 30.0)},
)


def label(lake: Lake, name: str = "hand", found: Evidence = FOUND) -> AutoLabels:
    """Label the split `train` and open the labels."""
    origin = origin_of(name, {"mask_rcnn": lidar_card()}, (96, 64), {"calibration": VEHICLES.to_plain()})
    for base in lake.in_split("train"):
        proposer: Any = HandProposer(found)
        assert label_segment(lake, base, proposer, origin, VEHICLES).committed
    return AutoLabels.open(lake, "train", name)
