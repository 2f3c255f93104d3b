"""How well the student's branches predict their teachers' targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from student.config import StudentError
from teachers.classes import IGNORED
from teachers.confusion import Confusion
from teachers.statistics import Moments
from teachers.target import Target

# A channel that varies less than this is constant but for rounding: what is left of it is no share of anything.
_CONSTANT_VARIANCE = 1e-12


class RegressionScores:
    """How near predictions come to a regression teacher's values, in the valid cells alone.

    Sums are kept in float64 and merged about their means (`Moments`), so that a large offset costs no precision.

    channels: D
    position_mean: float32 [D, h, w], the mean of the training targets in each cell (`CellMean`): a student uses the
        image only where it beats this. None: no such metric
    """

    def __init__(self, channels: int, position_mean: Tensor | None = None) -> None:
        if position_mean is not None and (position_mean.ndim != 3 or len(position_mean) != channels):
            raise ValueError(f"Expected position_mean [{channels}, h, w], got: {list(position_mean.shape)}")
        self._channels = channels
        self._position_mean = position_mean
        self._everywhere, self._foreground, self._position = (_Fit(channels) for _ in range(3))
        self._cosine = 0.0
        self._unit_targets = torch.zeros(channels, dtype=torch.float64)

    def add(self, prediction: Tensor, target: Target, foreground: Tensor | None = None) -> None:
        """Count a batch.

        prediction: float32 [B, D, h, w] in the target's own units, on the target's device
        foreground: bool [B, 1, h, w], the cells of objects; None: unknown, the batch does not count for that figure

        Raises ValueError where shapes do not fit, the target is of classes, or a valid cell is not finite.
        """
        _check_continuous(target, self._channels)
        if prediction.shape != target.values.shape:
            raise ValueError(f"Expected a prediction {list(target.values.shape)}, got: {list(prediction.shape)}")
        if foreground is not None and (foreground.shape != target.valid.shape or foreground.dtype != torch.bool):
            raise ValueError(
                f"Expected foreground bool {list(target.valid.shape)}, got: {foreground.dtype} {list(foreground.shape)}"
            )
        if self._position_mean is not None and self._position_mean.shape != target.values.shape[1:]:
            raise ValueError(
                f"Expected targets like position_mean {list(self._position_mean.shape)},"
                f" got: {list(target.values.shape[1:])}"
            )
        # One sample after the other: float64 copies of a batch of full images would take gigabytes.
        for number, valid in enumerate(target.valid[:, 0]):
            predicted, true = _rows(prediction[number], valid), _rows(target.values[number], valid)
            if not bool(predicted.isfinite().all() and true.isfinite().all()):
                raise ValueError("Expected finite values in valid cells, got one that is not in prediction or target")
            self._everywhere.add(predicted, true)
            if foreground is not None:
                on_object = foreground[number, 0][valid]
                self._foreground.add(predicted[on_object], true[on_object])
            if self._position_mean is not None:
                self._position.add(_rows(self._position_mean.to(valid.device), valid), true)
            self._cosine += float(F.cosine_similarity(predicted, true, dim=1).sum())
            self._unit_targets += F.normalize(true, dim=1).sum(0).cpu()

    def metrics(self) -> dict[str, float]:
        """Return the metrics; those without data are left out.

        `cells`: how many were valid. `R2`: 1 - (sum of squared errors) / (sum of squared deviations of the targets from
        their own mean per channel, over these very cells), both over all channels. `R2/worst_channel`: the lowest of a
        channel that is not constant. `R2/foreground`: of foreground cells, about their own mean. `R2/position`: what
        `position_mean` gets as a predictor. `cosine`: mean over cells of the similarity of prediction and target, 0
        where one of them is all 0. `cosine/mean`: what the targets' mean per channel gets as a predictor.
        """
        cells = self._everywhere.moments.count
        metrics = {"cells": float(cells)}
        for name, fit in (
            ("R2", self._everywhere),
            ("R2/foreground", self._foreground),
            ("R2/position", self._position),
        ):
            if (share := fit.explained()) is not None:
                metrics[name] = share
        by_channel = self._everywhere.explained_by_channel()
        if len(by_channel):
            metrics["R2/worst_channel"] = float(by_channel.min())
        if cells:
            direction = F.normalize(self._everywhere.moments.mean, dim=0)
            metrics["cosine"] = self._cosine / cells
            metrics["cosine/mean"] = float(direction @ self._unit_targets) / cells
        return metrics


class ClassScores:
    """How the student's classes compare with a teacher's, in the valid cells alone.

    class_names: K names, the first is the background's
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = tuple(class_names)
        self._confusion = Confusion.empty(len(self._class_names))

    def add(self, logits: Tensor, target: Target) -> None:
        """Count a batch; logits are float32 [B, K, h, w], and the prediction is the class with the largest.

        Raises ValueError where shapes do not fit, the target is of regression, or it has a class of K or above.
        """
        classes = len(self._class_names)
        if target.kind != "classification":
            raise ValueError("Expected a target of classes, got: one of regression")
        batch, _, height, width = target.values.shape
        if logits.shape != (batch, classes, height, width):
            raise ValueError(f"Expected logits {[batch, classes, height, width]}, got: {list(logits.shape)}")
        predicted = target.values[target.valid]
        if len(predicted) and not 0 <= int(predicted.min()) <= int(predicted.max()) < classes:
            raise ValueError(f"Expected classes below {classes}, got: {int(predicted.min())} … {int(predicted.max())}")
        truth = target.values.masked_fill(~target.valid, IGNORED)
        self._confusion += Confusion.of(truth, logits.argmax(1, keepdim=True), classes)

    def metrics(self) -> dict[str, float]:
        """Return `accuracy`, `mIoU`, `IoU/<class>` of classes that occur and both `trivial/…`; {} without valid cells.

        The trivial prediction is background everywhere.
        """
        metrics = self._confusion.metrics(self._class_names)
        if not metrics:
            return {}
        counts = torch.zeros_like(self._confusion.counts)
        counts[:, 0] = self._confusion.counts.sum(1)
        background = Confusion(counts)
        return {**metrics, "trivial/accuracy": background.accuracy(), "trivial/mIoU": background.mean_iou()}


class CellMean:
    """The mean of a regression teacher's values in each of h x w cells: the best prediction without an image."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        self._sum = torch.zeros(channels, height, width, dtype=torch.float64)
        self._count = torch.zeros(height, width, dtype=torch.int64)

    def add(self, target: Target) -> None:
        """Count a batch; raises ValueError where the target is of classes or of another shape."""
        _check_continuous(target, len(self._sum))
        if target.values.shape[1:] != self._sum.shape:
            raise ValueError(
                f"Expected targets [B, {', '.join(map(str, self._sum.shape))}], got: {list(target.values.shape)}"
            )
        # Not a product: what stands in a cell that is not valid may be NaN.
        values = target.values.where(target.valid, target.values.new_zeros(()))
        self._sum += values.sum(0, dtype=torch.float64).cpu()
        self._count += target.valid[:, 0].sum(0).cpu()

    def values(self) -> Tensor:
        """Return float32 [D, h, w], the mean of each cell, and in cells that were never valid that of the channel.

        Raises StudentError where not one valid cell was seen.
        """
        cells = int(self._count.sum())
        if not cells:
            raise StudentError("a teacher predicts no valid cell of the training split: no mean to compare with")
        overall = self._sum.sum((1, 2)) / cells
        return (self._sum / self._count).where(self._count > 0, overall[:, None, None]).float()


class _Fit:
    """Sums over cells from which the share of the targets' variance that a prediction explains is computed."""

    def __init__(self, channels: int) -> None:
        self.moments = Moments.empty(channels)
        self._errors = torch.zeros(channels, dtype=torch.float64)

    def add(self, predicted: Tensor, true: Tensor) -> None:
        """Count cells, float64 [n, D] each."""
        self.moments += Moments.of(true)
        self._errors += (predicted - true).square().sum(0).cpu()

    def explained(self) -> float | None:
        """Return 1 - errors / deviations over all channels, or None where the targets do not vary."""
        if not bool(self._varies.any()):
            return None
        return float(1 - self._errors.sum() / self.moments.squares.sum())

    def explained_by_channel(self) -> Tensor:
        """Return the same of each channel that varies, float64."""
        return (1 - self._errors / self.moments.squares)[self._varies]

    @property
    def _varies(self) -> Tensor:
        return self.moments.squares > _CONSTANT_VARIANCE * self.moments.count


def _check_continuous(target: Target, channels: int) -> None:
    if target.kind != "regression":
        raise ValueError("Expected a target of regression, got: one of classes")
    if target.values.shape[1] != channels:
        raise ValueError(f"Expected a target of {channels} channels, got: {target.values.shape[1]}")


def _rows(values: Tensor, valid: Tensor) -> Tensor:
    """Return float64 [n, D], the values [D, h, w] of the n valid cells."""
    return values.detach().permute(1, 2, 0)[valid].double()
