"""What somebody who gets an exported student has to know of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from student.config import StudentConfig
from student.detections import CLASS_NAMES
from training.fingerprint import Plain

# Not card.json: a folder that has one is a teacher's.
MODEL_CARD_FILE = "model_card.json"
# What a run's fingerprint says of its data.
_DATA = ("lake", "snapshot", "split", "cameras", "image_size", "labelled_fraction", "teachers")


def model_card(
    config: StudentConfig,
    fingerprint: Mapping[str, Plain],
    steps: int,
    evaluated: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> bytes:
    """Return the card of an exported student as JSON.

    fingerprint, steps: of the run that trained it
    evaluated: on which data the metrics were measured
    """
    given = config.trunk_weights_sha256 is not None
    card = {
        "model": "Faster R-CNN with a depth head (ClassroomNet)",
        "classes": CLASS_NAMES[1:],
        "trunk": {
            "name": config.trunk,
            "weights_sha256": config.trunk_weights_sha256,
            "weights_license": (config.trunk_weights_license or "unknown") if given else None,
            "image_mean": config.image_mean,
            "image_std": config.image_std,
        },
        "trained": {"steps": steps, **{name: fingerprint.get(name) for name in _DATA}},
        "evaluated": evaluated,
        "metrics": metrics,
    }
    return (json.dumps(card, indent=1, allow_nan=False) + "\n").encode()
