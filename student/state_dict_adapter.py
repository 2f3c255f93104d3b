"""Names of weights as version 0.1 called them, for its checkpoints and exported students."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_RENAMED = (
    (re.compile(r"^backbone\.branches\.([^.]+)\.look\."), r"backbone.branches.\1.stem."),
    (re.compile(r"^backbone\.branches\.([^.]+)\.say\."), r"backbone.branches.\1.predictor."),
    (re.compile(r"^backbone\.branches\.([^.]+)\.normalise\."), r"backbone.branches.\1.normalize."),
    (re.compile(r"^backbone\.branches\.([^.]+)\.pass_on\."), r"backbone.branches.\1.projection."),
    (re.compile(r"^backbone\.free\.look\."), "backbone.free.stem."),
    (re.compile(r"^backbone\.climb\."), "backbone.downsample."),
    (re.compile(r"^backbone\.join\."), "backbone.lateral."),
    (re.compile(r"^heads\.depth_head\.tell\."), "heads.depth_head.predictor."),
)


def adapt_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a student's state dict under the names of now; names of now stay what they are."""
    adapted = {}
    for name, value in weights.items():
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        adapted[name] = value
    return adapted
