"""From evidence to the probability that a box is right, and to what is done with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teachers.autolabel.evidence import Evidence
from teachers.card import TeacherError
from teachers.classes import MASK_CLASSES

# Types of which fewer detections are right, or wrong, are not calibrated, and fewer labels have no precision.
_LEAST = 10
# Scales that bring the features to about 1.
_LOGIT, _SIZE, _POINTS = 3.0, 4.0, 4.0
# Scores of 0 and 1 have no logit.
_SURE = 1e-3
# How much a coefficient of 1 costs, in units of one detection's loss; the constant costs nothing.
_RIDGE = 0.5
_STEPS, _CONVERGED = 100, 1e-10


@dataclass(frozen=True, slots=True)
class TypeCalibration:
    """What is known of the detections of one type.

    alone: coefficients of `mask_features`, for frames without lidar
    both: coefficients of `both_features`; None where no lidar teacher was asked
    alone_threshold, both_threshold: detections of at least this probability are labels; None: none is, for not even the
        surest are as often right as was asked for
    """

    alone: tuple[float, ...]
    both: tuple[float, ...] | None
    alone_threshold: float | None
    both_threshold: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """How evidence becomes labels.

    types: by their names; detections of others are ignored
    background: what is less likely than this to be right is taken for background; what is between is ignored
    precision: of a type's labels so many were right where it was calibrated
    """

    types: Mapping[str, TypeCalibration]
    background: float
    precision: float

    def score(self, evidence: Evidence) -> NDArray[np.float32]:
        """Return float32 [N], how likely each detection is right; NaN for a type that is not calibrated."""
        return self._by_type(evidence, lambda one, some: _probability(*_model(one, some)), np.nan)

    def threshold(self, evidence: Evidence) -> NDArray[np.float32]:
        """Return float32 [N], the probability from which on each detection is a label; infinite: none is."""

        def of_type(one: TypeCalibration, some: Evidence) -> float:
            is_both = some.lidar and one.both is not None
            found = one.both_threshold if is_both else one.alone_threshold
            return np.inf if found is None else found

        return self._by_type(evidence, of_type, np.inf)

    def to_plain(self) -> dict[str, Any]:
        """Return plain JSON values."""
        thresholds = {"background": self.background, "precision": self.precision}
        return {**thresholds, "types": {name: asdict(one) for name, one in self.types.items()}}

    @staticmethod
    def from_plain(values: Mapping[str, Any]) -> Calibration:
        """Return the calibration in plain values; raises TeacherError where they are none."""
        try:
            types = {
                name: TypeCalibration(
                    tuple(one["alone"]),
                    None if one["both"] is None else tuple(one["both"]),
                    one["alone_threshold"],
                    one["both_threshold"],
                )
                for name, one in values["types"].items()
            }
            return Calibration(types, float(values["background"]), float(values["precision"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise TeacherError(f"not the calibration of auto-labels: {error!r}") from error

    def _by_type(self, evidence: Evidence, of_type: Any, otherwise: float) -> NDArray[np.float32]:
        found = np.full(len(evidence), otherwise, np.float32)
        for name, one in self.types.items():
            chosen = evidence.types == MASK_CLASSES.index(name)
            if chosen.any():
                found[chosen] = of_type(one, evidence.kept(chosen))
        return found


def mask_features(evidence: Evidence) -> NDArray[np.float64]:
    """Return float64 [N, 4] of what the mask teacher says alone.

    These are 1, the logit of its score, the logarithm of the box's size, and the overlap with a more confident box.
    """
    score = evidence.mask_score.astype(np.float64).clip(_SURE, 1 - _SURE)
    sides = (evidence.boxes[:, 2:] - evidence.boxes[:, :2]).astype(np.float64)
    size = np.log(np.sqrt(sides.prod(1)).clip(min=1))
    return np.stack([np.ones(len(evidence)), np.log(score / (1 - score)) / _LOGIT, size / _SIZE, evidence.duplicate], 1)


def both_features(evidence: Evidence) -> NDArray[np.float64]:
    """Return float64 [N, 9]: those, and what the lidar teacher says, for frames with lidar.

    These are whether it says something of the points within the mask, and where it does their agreement, the
    probability of the other types and the logarithm of their number, otherwise 0; and how well one of the boxes fits
    that it finds alone.
    """
    told = np.isfinite(evidence.agreement)
    points = np.log1p(evidence.points.astype(np.float64)) / _POINTS
    columns = [told, evidence.agreement.astype(np.float64), evidence.other.astype(np.float64), points]
    of_points = np.stack([np.where(told, one, 0.0) for one in columns], 1)
    return np.concatenate([mask_features(evidence), of_points, evidence.lidar_iou[:, None].astype(np.float64)], 1)


def calibrate(
    images: Sequence[tuple[Evidence, NDArray[np.bool_]]], precision: float, background: float, *, lidar: bool
) -> Calibration:
    """Return the calibration from detections of which it is known whether they are right, bool [N] for each image.

    precision: of a type's detections above its threshold so many are right
    background: see `Calibration`
    lidar: whether the lidar teacher was asked; frames without its points take part in `alone` only
    """
    types = {}
    for kind, name in enumerate(MASK_CLASSES[1:], start=1):
        some = [(evidence.kept(chosen := evidence.types == kind), right[chosen]) for evidence, right in images]
        right = np.concatenate([np.zeros(0, bool), *(one for _, one in some)])
        if min(right.sum(), (~right).sum()) < _LEAST:
            continue
        features = np.concatenate([mask_features(evidence) for evidence, _ in some])
        alone = fit_logistic(features, right)
        both, both_threshold = None, None
        with_lidar = [(evidence, one) for evidence, one in some if evidence.lidar]
        right_with = np.concatenate([np.zeros(0, bool), *(one for _, one in with_lidar)])
        if lidar and min(right_with.sum(), (~right_with).sum()) >= _LEAST:
            features_with = np.concatenate([both_features(evidence) for evidence, _ in with_lidar])
            both = fit_logistic(features_with, right_with)
            both_threshold = threshold_for(_probability(features_with, both), right_with, precision)
        types[name] = TypeCalibration(
            tuple(alone.tolist()),
            None if both is None else tuple(both.tolist()),
            threshold_for(_probability(features, alone), right, precision),
            both_threshold,
        )
    return Calibration(types, background, precision)


def fit_logistic(features: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the coefficients float64 [F] of a logistic regression, by Newton's method.

    features: float64 [N, F], the first of them 1; right: bool [N]

    Minimizes the sum of cross entropies plus a ridge on all coefficients but the first, which keeps types with few
    detections, or none that are wrong, from certainty.
    """
    ridge = np.full(features.shape[1], _RIDGE)
    # The constant too, as little as makes a solution.
    ridge[0] = 1e-6
    coefficients = np.zeros(features.shape[1])
    for _ in range(_STEPS):
        probability = _probability(features, coefficients)
        gradient = features.T @ (probability - right) + ridge * coefficients
        curvature = (features * (probability * (1 - probability))[:, None]).T @ features + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        # Far from the minimum a whole step of Newton's may lead further away.
        coefficients = coefficients - step * min(1.0, 2.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < _CONVERGED:
            break
    return coefficients


def threshold_for(score: NDArray[Any], right: NDArray[np.bool_], precision: float) -> float | None:
    """Return the lowest of the scores [N] from which on at least this share is right, None where there is none.

    Detections of one score are taken all or not at all, and so many that their share is no accident: ten.
    """
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    share = right[order].cumsum() / np.arange(1, len(order) + 1)
    last_of_score = np.append(ranked[1:] < ranked[:-1], True) if len(ranked) else np.zeros(0, bool)
    enough = np.arange(1, len(order) + 1) >= _LEAST
    reached = np.flatnonzero((share >= precision) & last_of_score & enough)
    return float(ranked[reached[-1]]) if len(reached) else None


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Detections whose scores lie in one bin: how many, their mean score, and which share of them is right."""

    count: int
    mean_score: float
    right: float


def reliability(score: NDArray[Any], right: NDArray[np.bool_], bins: int = 10) -> list[ReliabilityBin]:
    """Return what a reliability diagram shows: equal bins of the score 0 … 1, those without a detection left out."""
    number = np.minimum((score * bins).astype(int), bins - 1)
    found = []
    for one in range(bins):
        inside = number == one
        if inside.any():
            found.append(ReliabilityBin(int(inside.sum()), float(score[inside].mean()), float(right[inside].mean())))
    return found


def _model(one: TypeCalibration, evidence: Evidence) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if evidence.lidar and one.both is not None:
        return both_features(evidence), np.array(one.both)
    return mask_features(evidence), np.array(one.alone)


def _probability(features: NDArray[np.float64], coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-(features @ coefficients).clip(-50, 50)))
