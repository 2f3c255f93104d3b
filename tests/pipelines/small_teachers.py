"""Two untrained teachers that are quick to ask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from teachers.card import TeacherCard, read_card, write_card, write_weights
from teachers.classes import MASK_CLASSES
from teachers.mask_rcnn.teacher import ARCHITECTURE, MaskRcnnConfig, build_network
from tests.teachers.cards import lidar_folder

# Untrained, it is sure of nothing; without a threshold it finds something everywhere.
_SLIM = MaskRcnnConfig(variant="slim", min_size=64, max_size=96, score=0.0, detections=5)


def write_teachers(folder: Path) -> dict[str, str]:
    """Write the teachers `points` and `masks` below a folder; return their URLs by name."""
    torch.manual_seed(0)
    masks = str(folder / "masks")
    card = TeacherCard(
        name="mask_rcnn",
        kind="classification",
        architecture=ARCHITECTURE,
        options=_SLIM.to_options(),
        channels=len(MASK_CLASSES),
        class_names=MASK_CLASSES,
        weights_sha256=write_weights(masks, build_network(_SLIM).state_dict()),
    )
    write_card(masks, card)
    return {"points": lidar_folder(folder / "lidar"), "masks": masks}


def admit_ignorance(url: str) -> None:
    """Let the teacher's card say that it knows nothing, so that whoever examines it is not surprised."""
    write_card(url, replace(read_card(url), metrics={"mIoU": 0.0, "accuracy": 0.0}))
