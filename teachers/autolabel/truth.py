"""Which of the proposed boxes are right."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.boxes import pairwise_iou

# The overlap by which a detection counts as right, as in AP50.
MIN_IOU = 0.5


def matched_objects(
    boxes: NDArray[Any],
    types: NDArray[np.int64],
    score: NDArray[Any],
    object_boxes: NDArray[Any],
    object_types: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return int64 [N], which of the M objects of its image each of N detections finds, -1 for none.

    boxes: [N, 4] and [M, 4], x0, y0, x1, y1 in the same pixels, each with an area; score: [N]

    The most confident first, each takes the object of its type that it overlaps most, by IoU 0.5 or more, among those
    that none has taken.
    """
    found = np.full(len(boxes), -1, np.int64)
    if not len(boxes) or not len(object_boxes):
        return found
    # Arrays that Ray hands over are not to be written to, so they are copied.
    iou = pairwise_iou(*(torch.tensor(some, dtype=torch.float64) for some in (boxes, object_boxes))).numpy()
    iou[types[:, None] != object_types] = 0
    for detection in np.argsort(-score, kind="stable").tolist():
        best = int(iou[detection].argmax())
        if iou[detection, best] >= MIN_IOU:
            found[detection] = best
            iou[:, best] = 0
    return found
