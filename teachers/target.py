"""A teacher's predictions for a batch on the student's grid, and their sparse form between processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datalake.sample import SampleKey
from teachers.card import Kind, TeacherError


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A teacher's predictions for B samples on a grid of h x w cells, which divides the whole image evenly.

    keys: the samples, in the order of the batch
    values: float32 [B, D, h, w] of a regression teacher, or class numbers int64 [B, 1, h, w]; 0 where not valid
    valid: bool [B, 1, h, w], the cells that the teacher predicts: no loss belongs on the others
    confidence: float32 [B, 1, h, w] within 0 … 1, 0 where not valid; None where the teacher has none
    """

    keys: tuple[SampleKey, ...]
    values: Tensor
    valid: Tensor
    confidence: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 4 or self.values.dtype not in (torch.float32, torch.int64):
            raise TeacherError(
                f"Expected values float32 or int64 [B, D, h, w], got: {self.values.dtype} {list(self.values.shape)}"
            )
        batch, channels, height, width = self.values.shape
        cells = (batch, 1, height, width)
        if self.kind == "classification" and channels != 1:
            raise TeacherError(f"Expected class numbers [B, 1, h, w], got: {list(self.values.shape)}")
        if len(self.keys) != batch:
            raise TeacherError(f"Expected a key for each of {batch} samples, got: {len(self.keys)}")
        if self.valid.shape != cells or self.valid.dtype != torch.bool:
            raise TeacherError(f"Expected valid bool {list(cells)}, got: {self.valid.dtype} {list(self.valid.shape)}")
        if self.confidence is not None and self.confidence.shape != cells:
            raise TeacherError(f"Expected confidence {list(cells)}, got: {list(self.confidence.shape)}")

    @property
    def kind(self) -> Kind:
        """Whether the values are numbers or classes."""
        return "classification" if self.values.dtype == torch.int64 else "regression"

    def __getitem__(self, chosen: Sequence[int]) -> Target:
        """Return the target of the chosen samples, in that order."""
        samples = list(chosen)
        return Target(
            tuple(self.keys[i] for i in samples),
            self.values[samples],
            self.valid[samples],
            None if self.confidence is None else self.confidence[samples],
        )

    def to(self, device: torch.device | str) -> Target:
        """Return the same on another device."""
        confidence = None if self.confidence is None else self.confidence.to(device)
        return replace(self, values=self.values.to(device), valid=self.valid.to(device), confidence=confidence)

    def one_hot(self, classes: int) -> Target:
        """Return class numbers as float32 [B, `classes`, h, w]: 1 for the cell's class, all 0 where not valid."""
        if self.kind != "classification":
            raise TeacherError("only class numbers can be made one-hot; this target is one of regression")
        if self.values.numel() and int(self.values.max()) >= classes:
            raise TeacherError(f"Expected classes below {classes}, got: {int(self.values.max())}")
        values = torch.zeros(len(self.values), classes, *self.values.shape[2:], device=self.values.device)
        return replace(self, values=values.scatter_(1, self.values, 1.0) * self.valid)

    def rounded(self) -> tuple[Target, Tensor]:
        """Return what `to_sparse` and back would make of it, and bool [], whether that would not have raised.

        Nothing is asked of the device that it is on.
        """
        values, sound = self._halved()
        confidence = None if self.confidence is None else self.confidence.half().float().where(self.valid, 0.0)
        values = values.to(self.values.dtype).where(self.valid, 0).contiguous()
        return replace(self, values=values, confidence=confidence), (sound | ~self.valid).all()

    def to_sparse(self) -> SparseTarget:
        """Return the valid cells alone, in half precision.

        Raises TeacherError where a value is not finite, or too large for float16 (65504): standardize first.
        """
        batch, channels, height, width = self.values.shape
        classes = self.kind == "classification"
        values, sound = self._halved()
        # Both in one copy: a GPU is waited for once, and again only for where the valid cells are.
        everywhere, all_sound = torch.stack([self.valid.all(), (sound | ~self.valid).all()]).tolist()
        if not all_sound:
            if classes:
                wrong = values[~sound & self.valid]
                raise TeacherError(f"Expected classes within 0 … 255, got: {int(wrong.min())} … {int(wrong.max())}")
            raise TeacherError("a valid cell has a value that is NaN, infinite or beyond what float16 holds")
        index = None if everywhere else self.valid.flatten().nonzero()[:, 0]

        def take(dense: Tensor) -> Tensor:
            rows = dense.permute(0, 2, 3, 1).reshape(-1, dense.shape[1])
            return rows if index is None else rows[index]

        values = take(values).to(torch.uint8) if classes else take(values)
        confidence = None if self.confidence is None else take(self.confidence)[:, 0].half()
        return SparseTarget(self.keys, (batch, channels, height, width), values, index, confidence)

    def _halved(self) -> tuple[Tensor, Tensor]:
        """Return the values as they travel, and where one can."""
        if self.kind == "classification":
            return self.values, (self.values >= 0) & (self.values <= 255)
        values = self.values.half()
        return values, values.isfinite()


@dataclass(frozen=True, slots=True, eq=False)
class SparseTarget:
    """The n valid cells of a Target.

    shape: (B, D, h, w) of the target; D is 1 for classes
    values: float16 [n, D], or classes uint8 [n, 1]
    index: int64 [n], ascending, each cell's number in [B, h, w] counted row by row; None where all are valid
    confidence: float16 [n] or None
    """

    keys: tuple[SampleKey, ...]
    shape: tuple[int, int, int, int]
    values: Tensor
    index: Tensor | None
    confidence: Tensor | None

    def __post_init__(self) -> None:
        batch, channels, height, width = self.shape
        cells = batch * height * width if self.index is None else len(self.index)
        if self.values.shape != (cells, channels):
            raise TeacherError(f"Expected values [{cells}, {channels}], got: {list(self.values.shape)}")
        if self.confidence is not None and self.confidence.shape != (cells,):
            raise TeacherError(f"Expected confidence [{cells}], got: {list(self.confidence.shape)}")

    def to(self, device: torch.device | str) -> SparseTarget:
        """Return the same on another device."""
        return replace(
            self,
            values=self.values.to(device),
            index=None if self.index is None else self.index.to(device),
            confidence=None if self.confidence is None else self.confidence.to(device),
        )

    @property
    def bytes(self) -> int:
        """How much has to travel."""
        parts = (self.values, self.index, self.confidence)
        return sum(part.nbytes for part in parts if part is not None)

    def to_dense(self) -> Target:
        """Return the target; its values are as precise as float16."""
        batch, _, height, width = self.shape
        dtype = torch.int64 if self.values.dtype == torch.uint8 else torch.float32

        def spread(rows: Tensor) -> Tensor:
            if self.index is None:
                cells = rows
            else:
                cells = rows.new_zeros(math.prod((batch, height, width)), rows.shape[1])
                cells[self.index] = rows
            return cells.reshape(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2).contiguous()

        valid = spread(torch.ones(len(self.values), 1, dtype=torch.bool, device=self.values.device))
        confidence = None if self.confidence is None else spread(self.confidence[:, None].float())
        return Target(self.keys, spread(self.values.to(dtype)), valid, confidence)
