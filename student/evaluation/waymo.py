"""Waymo's own metric of 2D detections: average precision by type and level of difficulty.

What `waymo_open_dataset/metrics` (`detection_metrics.cc`, `metrics_utils.cc`) computes for camera images: detections
are matched with labels by the Hungarian algorithm at each of 100 cutoffs on the score, and the area below precision
over recall is taken by the trapezoidal rule. COCO's metric (`student.evaluation.detection`) matches greedily instead,
takes the mean at 101 recalls, and knows no difficulty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from student.detections import CLASS_NAMES
from student.evaluation.incremental_assignment import IncrementalAssignment
from student.evaluation.ranges import DISTANCES, Range

LEVELS = {"LEVEL_1": 1, "LEVEL_2": 2}
# By how much a detection has to overlap with a label, by type. Waymo's ranking of 2D detections leaves signs out.
_MIN_IOU = {1: 0.7, 2: 0.5, 3: 0.5, 4: 0.5}
_UNRANKED = "SIGN"
_CUTOFFS = 100
# Points of the curve are added where two recalls are further apart.
_MAX_RECALL_STEP = 0.05
# Boxes with a side below this, in pixels, overlap with nothing.
_MIN_SIDE_PX = 0.01
# Overlaps are compared as whole millionths.
_IOU_UNITS = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class ScoredBoxes:
    """N detections in any number of images.

    image: int64 [N], which image it is in
    boxes: float32 [N, 4], x0, y0, x1, y1 in pixels
    types: int64 [N], 1 VEHICLE, 2 PEDESTRIAN, 3 SIGN, 4 CYCLIST
    scores: float32 [N] within 0 … 1
    distance_m: float32 [N], the predicted distance; it decides about the breakdown by distance alone
    """

    image: NDArray[np.int64]
    boxes: NDArray[np.float32]
    types: NDArray[np.int64]
    scores: NDArray[np.float32]
    distance_m: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LabelledBoxes:
    """M labels of the same images.

    image, boxes, types: as of detections
    difficulty: int8 [M], 1, 2, or 0 where the record has none, which counts as 1
    distance_m: float32 [M], NaN where it is not known
    """

    image: NDArray[np.int64]
    boxes: NDArray[np.float32]
    types: NDArray[np.int64]
    difficulty: NDArray[np.int8]
    distance_m: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class OperatingPoints:
    """What is right and wrong of one type at one level, counting the detections with a score from each cutoff on.

    cutoffs: float32 [C], rising
    true_positives, false_positives, false_negatives: int64 [C]
    """

    cutoffs: NDArray[np.float32]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of the labels that is found, float64 [C]; 0 where there is nothing to find."""
        return self.true_positives / np.maximum(self.true_positives + self.false_negatives, 1)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of the detections that is right, float64 [C]; 1 where none is, as Waymo has it."""
        found = np.maximum(self.true_positives + self.false_positives, 1)
        return np.where(self.true_positives == 0, 1.0, self.true_positives / found)

    @property
    def average_precision(self) -> float:
        """The area below precision over recall, where precision is the best at this recall or a higher one.

        Between recalls more than 0.05 apart, precision first stays at that of the higher one, in steps of 0.05, and is
        linear over the last step alone. From the lowest recall to 0 it is constant.
        """
        recalls, number = np.unique(np.append(self.recall, 0.0), return_inverse=True)
        best = np.zeros(len(recalls))
        np.maximum.at(best, number, np.append(self.precision, 0.0))
        best = np.maximum.accumulate(best[::-1])[::-1]
        if len(recalls) == 1:
            return 0.0
        best[0] = best[1]
        area = 0.0
        for left in range(len(recalls) - 1):
            width, high = recalls[left + 1] - recalls[left], best[left + 1]
            last_step = width - _MAX_RECALL_STEP * max(0, np.ceil((width - 1e-6) / _MAX_RECALL_STEP) - 1)
            area += high * (width - last_step) + 0.5 * last_step * (high + best[left])
        return float(area)


@dataclass(frozen=True, slots=True, eq=False)
class MatchedBoxes:
    """Detections and labels of the same images, matched at every cutoff.

    found_from: float32 [M], the score of the detections from which on a label is matched; -inf: never
    wrong_from: float32 [N], likewise, of a detection that is matched with no label
    cutoffs: float32 [C] of the scores, rising
    """

    detections: ScoredBoxes
    labels: LabelledBoxes
    found_from: NDArray[np.float32]
    wrong_from: NDArray[np.float32]
    cutoffs: NDArray[np.float32]

    def operating_points(self, type_number: int, level: int, distances: Range | None = None) -> OperatingPoints:
        """Return the counts of one type (1 … 4) at one level (1, 2).

        As Waymo counts, a found label is a true positive at any level, and one that is missed a false negative at its
        own level and those above.

        distances: in which labels are to lie, and, by the distance that they predict, the wrong detections; Waymo has
            no such breakdown of 2D detections
        """
        of_type = self.labels.types == type_number
        wrong = self.detections.types == type_number
        if distances is not None:
            of_type = of_type & _within(self.labels.distance_m, distances)
            wrong = wrong & _within(self.detections.distance_m, distances)
        of_level = of_type & (self.labels.difficulty <= level)
        return OperatingPoints(
            cutoffs=self.cutoffs,
            true_positives=_from(self.found_from[of_type], self.cutoffs),
            false_positives=_from(self.wrong_from[wrong], self.cutoffs),
            false_negatives=of_level.sum() - _from(self.found_from[of_level], self.cutoffs),
        )

    def metrics(self) -> dict[str, float]:
        """Return the average precisions, without those that no label belongs to.

        `waymo/LEVEL_1/<type>`, `waymo/LEVEL_2/<type>`, and `waymo/LEVEL_1`, `waymo/LEVEL_2`, their means over all types
        but signs, as Waymo ranks by. By distance, which is ours, `waymo-ours/LEVEL_1/0-20m` …, likewise means.
        """
        metrics: dict[str, float] = {}
        for name, level in LEVELS.items():
            by_type = self._by_type(level, None)
            metrics |= {f"waymo/{name}/{one}": value for one, value in by_type.items()}
            metrics |= _ranked_mean(f"waymo/{name}", by_type)
            for distances in DISTANCES:
                metrics |= _ranked_mean(f"waymo-ours/{name}/{distances.name}", self._by_type(level, distances))
        return metrics

    def _by_type(self, level: int, distances: Range | None) -> dict[str, float]:
        labels = self.labels
        counts = labels.difficulty <= level
        if distances is not None:
            counts = counts & _within(labels.distance_m, distances)
        return {
            CLASS_NAMES[number]: self.operating_points(number, level, distances).average_precision
            for number in np.unique(labels.types[counts]).tolist()
        }


def match_for_waymo(detections: ScoredBoxes, labels: LabelledBoxes) -> MatchedBoxes:
    """Match detections with labels of the same image and type, for every cutoff on the score at once.

    At each cutoff the detections from it on are matched so that the sum of overlaps is the largest, of pairs that
    overlap by 0.7 (vehicles) or 0.5.
    """
    found_from = np.full(len(labels.boxes), -np.inf, np.float32)
    # A detection that can be matched with nothing is wrong from its own score on.
    wrong_from = detections.scores.astype(np.float32)
    of_labels = dict(_groups(labels))
    for key, mine in _groups(detections):
        if key not in of_labels:
            continue
        theirs = of_labels[key]
        mine = mine[np.argsort(-detections.scores[mine], kind="stable")]
        iou = _iou(detections.boxes[mine], labels.boxes[theirs])
        weights = np.where(iou >= np.float32(_MIN_IOU[key[1]]), np.rint(iou * _IOU_UNITS), 0).astype(np.int64)
        # Most detections can be matched with nothing; the others are added by falling score.
        mine, weights = mine[weights.any(1)], weights[weights.any(1)]
        wrong_from[mine] = -np.inf
        matching = IncrementalAssignment()
        for detection, row in zip(mine, weights, strict=True):
            edges = np.flatnonzero(row)
            found, wrong = matching.add(list(zip(edges.tolist(), row[edges].tolist(), strict=True)))
            score = detections.scores[detection]
            if found is not None:
                found_from[theirs[found]] = score
            if wrong is not None:
                wrong_from[mine[wrong]] = score
    return MatchedBoxes(detections, labels, found_from, wrong_from, score_cutoffs(detections.scores))


def score_cutoffs(scores: NDArray[np.float32], count: int = _CUTOFFS) -> NDArray[np.float32]:
    """Return rising cutoffs float32 [count]: between them lie equally many of the scores [N]; the last is 1.

    They are spread evenly over 0 … 1 where there are no more scores than that.
    """
    if len(scores) <= count:
        return np.linspace(0, 1, count, dtype=np.float32)
    between = np.full(count - 1, len(scores) // (count - 1))
    # Where it does not come out even, the last ones have one more.
    between[len(between) - len(scores) % (count - 1) :] += 1
    first = np.concatenate([[0], between.cumsum()[:-1]])
    cutoffs = np.sort(scores.astype(np.float32))[first]
    cutoffs[1:] = cutoffs[1:].clip(0, 1)
    return np.append(cutoffs, np.float32(1))


def _groups(boxes: ScoredBoxes | LabelledBoxes) -> Iterator[tuple[tuple[int, int], NDArray[np.int64]]]:
    """Yield (image, type) and the rows that have both."""
    if not len(boxes.boxes):
        return
    order = np.lexsort((boxes.types, boxes.image))
    image, types = boxes.image[order], boxes.types[order]
    starts = np.flatnonzero((np.diff(image) != 0) | (np.diff(types) != 0)) + 1
    for rows in np.split(order, starts):
        yield (int(boxes.image[rows[0]]), int(boxes.types[rows[0]])), rows


def _iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 [N, M]: the overlap of boxes [N, 4] with boxes [M, 4]."""
    one, other = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    common = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    sides, others = one[..., 2:] - one[..., :2], other[..., 2:] - other[..., :2]
    intersection = common.clip(min=0).prod(-1)
    union = sides.prod(-1) + others.prod(-1) - intersection
    tiny = (sides.min(-1) <= _MIN_SIDE_PX) | (others.min(-1) <= _MIN_SIDE_PX)
    return np.where(tiny, 0, intersection / np.where(tiny, 1, union)).astype(np.float32)


def _from(values: NDArray[np.float32], cutoffs: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return int64 [C]: how many of the values are at least as large as each cutoff."""
    return len(values) - np.searchsorted(np.sort(values), cutoffs, side="left")


def _within(values: NDArray[np.float32], distances: Range) -> NDArray[np.bool_]:
    exact = values.astype(np.float64)
    return (exact >= distances.first) & (exact <= distances.last)


def _ranked_mean(name: str, by_type: dict[str, float]) -> dict[str, float]:
    ranked = [value for one, value in by_type.items() if one != _UNRANKED]
    return {name: sum(ranked) / len(ranked)} if ranked else {}
