"""The nineteen classes, in the order of the public networks' outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = (
    "car",
    "bicycle",
    "motorcycle",
    "truck",
    "other-vehicle",
    "person",
    "bicyclist",
    "motorcyclist",
    "road",
    "parking",
    "sidewalk",
    "other-ground",
    "building",
    "fence",
    "vegetation",
    "trunk",
    "terrain",
    "pole",
    "traffic-sign",
)
IGNORED = 255

# SemanticKITTI's raw labels that the networks were trained on, static and moving (Behley et al. 2019, table 1). What
# is missing here (on-rails, bus, lane-marking, other-structure …) was not among their classes.
_RAW_LABELS = {
    "car": (10, 252),
    "bicycle": (11,),
    "motorcycle": (15,),
    "truck": (18, 258),
    "other-vehicle": (20, 259),
    "person": (30, 254),
    "bicyclist": (31, 253),
    "motorcyclist": (32, 255),
    "road": (40,),
    "parking": (44,),
    "sidewalk": (48,),
    "other-ground": (49,),
    "building": (50,),
    "fence": (51,),
    "vegetation": (70,),
    "trunk": (71,),
    "terrain": (72,),
    "pole": (80,),
    "traffic-sign": (81,),
}


def read_semantickitti_labels(path: str | Path) -> NDArray[np.uint8]:
    """Return uint8 [P], the class of each point of a .label file (uint32, class in the lower 16 bits), or IGNORED."""
    raw = np.fromfile(path, np.uint32) & 0xFFFF
    table = np.full(1 << 16, IGNORED, np.uint8)
    for number, name in enumerate(CLASSES):
        table[list(_RAW_LABELS[name])] = number
    return table[raw]
