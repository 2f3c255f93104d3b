"""How good auto-labels are, against human ones: by the mask teacher alone, the lidar teacher alone, and both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datalake.sample import Objects
from student.detections import CLASS_NAMES, Detections
from student.evaluation.detection import DetectionScores
from student.evaluation.ranges import DISTANCES, SIZES, Range
from teachers.autolabel.calibration import Calibration, ReliabilityBin, reliability, threshold_for
from teachers.autolabel.table import CONFIRMED
from teachers.autolabel.task import ProposedImage
from teachers.autolabel.truth import matched_objects
from teachers.classes import MASK_CLASSES

MASK, LIDAR, CONSENSUS = "mask", "lidar", "consensus"
SOURCES = (MASK, LIDAR, CONSENSUS)
_CLASS_OF_TYPE = np.array([CLASS_NAMES.index(name) for name in MASK_CLASSES])
# At this share of the mask teacher's own recall false labels are counted as well.
_RECALL_KEPT = 0.95
# Without a point within its mask a detection is taken for one far away.
_FAR_M = 1e3


@dataclass(frozen=True, slots=True, eq=False)
class _Proposals:
    """All N proposals of one source, and the M objects, in numpy arrays, over all images.

    image: int64 [N]; boxes: float32 [N, 4]; types: int64 [N]; score: float32 [N]
    accepted: bool [N], whether it is a label; found: int64 [N], the number of the object that it finds, or -1
    depth_m: float32 [N], NaN where the source does not know it
    """

    image: NDArray[np.int64]
    boxes: NDArray[np.float32]
    types: NDArray[np.int64]
    score: NDArray[np.float32]
    accepted: NDArray[np.bool_]
    found: NDArray[np.int64]
    depth_m: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Judged:
    """The labels of one source within one group of objects.

    objects: human labels; labels: of the source
    precision: share of these that is right; recall: share of the objects that has one; NaN where there is none
    ap50: of all proposals, however unsure; NaN where the group has no object
    abs_rel: mean of |d - t| / t of right labels whose distance both know; NaN without any
    """

    source: str
    group: str
    objects: int
    labels: int
    precision: float
    recall: float
    ap50: float
    abs_rel: float


@dataclass(frozen=True, slots=True)
class EqualRecall:
    """False labels of one class at one recall: of the mask teacher alone, and of the consensus.

    recall: of the mask teacher's own labels
    mask, consensus: how many false ones it takes to reach that recall; None: it is not reached
    mask_below, consensus_below: how many it takes to reach .95 of it
    """

    class_name: str
    recall: float
    mask: int | None
    consensus: int | None
    mask_below: int | None
    consensus_below: int | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What `judge` finds. reliability: of the consensus, by class."""

    images: int
    rows: tuple[Judged, ...]
    equal_recall: tuple[EqualRecall, ...]
    reliability: dict[str, list[ReliabilityBin]]


def lidar_thresholds(images: Sequence[ProposedImage], precision: float) -> dict[str, float | None]:
    """Return, by type, the score from which on what the lidar teacher finds alone is as often right as asked for.

    None: it never is.
    """
    thresholds: dict[str, float | None] = {}
    for kind, name in enumerate(MASK_CLASSES[1:], start=1):
        scores, right = [], []
        for one in images:
            found = _matched(one, one.objects.boxes, one.objects.types, one.objects.score)
            scores.append(one.objects.score[one.objects.types == kind])
            right.append(found[one.objects.types == kind] >= 0)
        thresholds[name] = threshold_for(np.concatenate(scores), np.concatenate(right), precision) if images else None
    return thresholds


def judge(
    images: Sequence[ProposedImage], calibration: Calibration, lidar_alone: Mapping[str, float | None]
) -> Judgement:
    """Return how good the labels of the three sources are in images that nothing was calibrated on.

    lidar_alone: from `lidar_thresholds`, of the images that the calibration is of
    """
    sources = {name: _proposals(name, images, calibration, lidar_alone) for name in SOURCES}
    objects = _Proposals(
        image=np.concatenate([np.full(len(one.boxes), number) for number, one in enumerate(images)]),
        boxes=np.concatenate([one.boxes for one in images]),
        types=np.concatenate([one.types for one in images]),
        score=np.zeros(0, np.float32),
        accepted=np.zeros(0, bool),
        found=np.zeros(0, np.int64),
        depth_m=np.concatenate([one.depth_m for one in images]),
    )
    rows = []
    for name, proposals in sources.items():
        ap50 = _average_precisions(images, proposals)
        for group, inside in _groups():
            rows.append(_judged(name, group, proposals, objects, inside, ap50))
    both = sources[CONSENSUS]
    bins = {}
    for kind, name in enumerate(MASK_CLASSES[1:], start=1):
        if (of_type := both.types == kind).any():
            bins[name] = reliability(both.score[of_type], both.found[of_type] >= 0)
    return Judgement(len(images), tuple(rows), tuple(_equal_recalls(sources, objects)), bins)


def _proposals(
    source: str, images: Sequence[ProposedImage], calibration: Calibration, lidar_alone: Mapping[str, float | None]
) -> _Proposals:
    parts: list[tuple[Any, ...]] = []
    first = 0
    for number, one in enumerate(images):
        boxes: NDArray[np.float32]
        if source == LIDAR:
            alone = one.objects
            boxes, types, score, depth_m = alone.boxes, alone.types, alone.score, alone.depth_m
            asked = (lidar_alone[name] for name in MASK_CLASSES[1:])
            limits = np.array([np.inf, *(np.inf if one is None else one for one in asked)])
            accepted = score >= limits[types]
        else:
            evidence = one.evidence if source == CONSENSUS else replace(one.evidence, lidar=False)
            boxes, types = evidence.boxes, evidence.types
            # Of a type that is not calibrated nothing is a label.
            score = np.nan_to_num(calibration.score(evidence))
            accepted = score >= calibration.threshold(evidence)
            confirmed = np.nan_to_num(evidence.agreement) >= CONFIRMED
            depth_m = np.where(confirmed | (source == MASK), evidence.depth_m, np.nan)
        found = _matched(one, boxes, types, score)
        parts.append((np.full(len(boxes), number), boxes, types, score, accepted, _moved(found, first), depth_m))
        first += len(one.boxes)
    return _Proposals(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _matched(
    one: ProposedImage, boxes: NDArray[np.float32], types: NDArray[np.int64], score: NDArray[np.float32]
) -> NDArray[np.int64]:
    return matched_objects(boxes, types, score, one.boxes, one.types)


def _moved(found: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    return np.where(found >= 0, found + first, -1)


Inside = Callable[[_Proposals], NDArray[np.bool_]]


def _groups() -> Iterable[tuple[str, Inside]]:
    yield "all", lambda some: np.ones(len(some.boxes), bool)
    for kind, name in enumerate(MASK_CLASSES[1:], start=1):
        yield name, lambda some, kind=kind: some.types == kind  # type: ignore[misc]
    for one in SIZES:
        yield one.name, lambda some, one=one: _within(one, _sizes(some.boxes))  # type: ignore[misc]
    for one in DISTANCES:
        yield one.name, lambda some, one=one: _within(one, some.depth_m)  # type: ignore[misc]


def _within(one: Range, values: NDArray[Any]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = one.contains(torch.from_numpy(values.astype(np.float64))).numpy()
    return inside


def _sizes(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    sides: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).clip(min=0)
    return np.sqrt(sides.prod(1))


def _judged(
    source: str, group: str, some: _Proposals, objects: _Proposals, inside: Inside, ap50: dict[str, float]
) -> Judged:
    labels = some.accepted & inside(some)
    wanted = inside(objects)
    right = some.found[some.accepted & (some.found >= 0)]
    has_label = np.zeros(len(objects.boxes), bool)
    has_label[right] = True
    matched = some.accepted & (some.found >= 0)
    matched[matched] &= wanted[some.found[matched]]
    predicted, true = some.depth_m[matched], objects.depth_m[some.found[matched]]
    known = np.isfinite(predicted) & np.isfinite(true)
    errors = np.abs(predicted[known] - true[known]) / true[known]
    return Judged(
        source=source,
        group=group,
        objects=int(wanted.sum()),
        labels=int(labels.sum()),
        precision=_share(some.found[labels] >= 0),
        recall=_share(has_label[wanted]),
        ap50=ap50.get("AP50" if group == "all" else f"AP50/{group}", float("nan")),
        abs_rel=float(errors.mean()) if len(errors) else float("nan"),
    )


def _share(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _average_precisions(images: Sequence[ProposedImage], some: _Proposals) -> dict[str, float]:
    scores = DetectionScores()
    for number, one in enumerate(images):
        here = some.image == number
        scores.add(
            Detections(
                torch.from_numpy(some.boxes[here]),
                torch.from_numpy(_CLASS_OF_TYPE[some.types[here]]),
                torch.from_numpy(some.score[here]),
                torch.from_numpy(some.depth_m[here]).nan_to_num(nan=_FAR_M),
            ),
            Objects(
                torch.tensor(one.boxes),
                torch.from_numpy(_CLASS_OF_TYPE[one.types]),
                torch.tensor(one.depth_m),
            ),
        )
    return scores.metrics()


def _equal_recalls(sources: dict[str, _Proposals], objects: _Proposals) -> Iterable[EqualRecall]:
    mask, both = sources[MASK], sources[CONSENSUS]
    for kind, name in enumerate(MASK_CLASSES[1:], start=1):
        total = int((objects.types == kind).sum())
        of_type = mask.types == kind
        found = int((mask.found[of_type & mask.accepted] >= 0).sum())
        if not found:
            continue
        counts = found, int(np.ceil(_RECALL_KEPT * found))
        yield EqualRecall(
            name, found / total, *(_false_until(count, some, kind) for count in counts for some in (mask, both))
        )


def _false_until(wanted: int, some: _Proposals, kind: int) -> int | None:
    """Return how many proposals of a type are wrong among the surest of which so many are right."""
    of_type = some.types == kind
    order = np.argsort(-some.score[of_type], kind="stable")
    right = (some.found[of_type][order] >= 0).cumsum()
    place = int(np.searchsorted(right, wanted))
    return None if place >= len(right) else place + 1 - wanted
