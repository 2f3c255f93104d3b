"""Principal components of features: how many directions they really use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """The principal components of vectors with D numbers.

    mean: float32 [D]
    basis: float32 [D, D], a component in each column, the one with the largest variance first
    variance: float64 [D], descending
    """

    mean: Tensor
    basis: Tensor
    variance: Tensor

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the singular values' shares (Roy and Vetterli 2007); 0 where nothing varies."""
        values = self.variance.sqrt()
        if float(values.sum()) <= 0:
            return 0.0
        return float(torch.special.entr(values / values.sum()).sum().exp())

    def explained(self, count: int) -> float:
        """Return which share of the variance the first so many components have."""
        total = float(self.variance.sum())
        return float(self.variance[:count].sum()) / total if total > 0 else 0.0

    def project(self, vectors: Tensor, count: int) -> Tensor:
        """Return the first so many components [..., count] of vectors [..., D], not whitened."""
        return (vectors - self.mean) @ self.basis[:, :count]


def principal(vectors: Tensor) -> Principal:
    """Return the principal components of vectors float32 [n, D]; of each the largest entry is positive."""
    rows = vectors.double()
    mean = rows.mean(0)
    values, columns = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    basis = columns.flip(1)
    # The sign is the decomposition's whim.
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    return Principal(mean.float(), basis.float(), values.flip(0).clamp(min=0))
