"""A small mask teacher with seeded weights, in a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from teachers.card import TeacherCard, write_card, write_weights
from teachers.classes import MASK_CLASSES
from teachers.mask_rcnn.teacher import ARCHITECTURE, MaskRcnnConfig, build_network

# Untrained, it is sure of nothing; without a threshold it finds something everywhere.
SMALL_MASKS = MaskRcnnConfig(min_size=64, max_size=96, score=0.0, detections=5)


def mask_folder(folder: Path, seed: int = 0) -> str:
    """Write a mask teacher for images of 96 x 64 into a folder; return its URL."""
    torch.manual_seed(seed)
    card = TeacherCard(
        name="mask_rcnn",
        kind="classification",
        architecture=ARCHITECTURE,
        options=SMALL_MASKS.to_options(),
        channels=len(MASK_CLASSES),
        class_names=MASK_CLASSES,
        weights_sha256=write_weights(str(folder), build_network(SMALL_MASKS).state_dict()),
    )
    write_card(str(folder), card)
    return str(folder)
