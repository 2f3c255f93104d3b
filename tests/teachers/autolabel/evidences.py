"""Evidence made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from teachers.autolabel.evidence import Evidence


def evidence(*rows: dict[str, Any], lidar: bool = True) -> Evidence:
    """Return what is known of detections, each of which differs from a sure vehicle on the left by what is given."""
    sure = {
        "boxes": (0.0, 0.0, 20.0, 20.0), "types": 1, "mask_score": 0.9, "duplicate": 0.0, "points": 30,
        "depth_m": 20.0, "depth_median_m": 20.0, "depth_nearest_m": 20.0, "agreement": 0.9, "other": 0.0,
        "lidar_iou": 0.7,
    }  # fmt: skip
    if not lidar:
        unknown = ("depth_m", "depth_median_m", "depth_nearest_m", "agreement", "other")
        sure |= {"points": 0, "lidar_iou": 0.0, **dict.fromkeys(unknown, np.nan)}
    kinds = {"types": np.int64, "points": np.int32}
    columns = {name: np.array([(sure | row)[name] for row in rows], kinds.get(name, np.float32)) for name in sure}
    columns["boxes"] = columns["boxes"].reshape(-1, 4)
    return Evidence(**columns, lidar=lidar)
