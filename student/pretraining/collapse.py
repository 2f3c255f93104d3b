"""Whether a network that learns without labels still tells images apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

STD, RANK, COSINE, VECTORS = "collapse/std", "collapse/effective_rank", "collapse/cosine", "collapse/vectors"
# Beyond these a representation is as good as lost; 1, a large share of the dimensions, and 0 would be ideal.
_LEAST_STD, _LEAST_RANK, _MOST_COSINE = 0.2, 4.0, 0.9


class RecentVectors(nn.Module):
    """The last so many vectors, float32 [size, d], of different images; part of the checkpoint.

    The rank of one batch's vectors is that of the batch.
    """

    vectors: Tensor
    count: Tensor

    def __init__(self, size: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dimensions))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def append(self, vectors: Tensor) -> None:
        """Replace the oldest by these [n, d]."""
        size = len(self.vectors)
        vectors = vectors.detach()[-size:].float()
        rows = (self.count + torch.arange(len(vectors), device=vectors.device)) % size
        self.vectors.index_copy_(0, rows, vectors)
        self.count += len(vectors)

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """Return `collapse_metrics` of those that there are."""
        return collapse_metrics(self.vectors[: int(self.count)])


def collapse_metrics(vectors: Tensor) -> dict[str, Tensor]:
    """Return what tells whether vectors float32 [n, d] of n images have collapsed, each scaled to length 1 first.

    `collapse/std`: sqrt(d) times the mean over dimensions of the deviation; 1: in all directions alike, 0: constant
    `collapse/effective_rank`: exp of the entropy of the singular values' shares (Roy and Vetterli 2007), centered;
        0 where all vectors are the same
    `collapse/cosine`: mean of different images' cosines
    `collapse/vectors`: n
    """
    count, dimensions = vectors.shape
    unit = normalize(vectors.double(), dim=1)
    centered = unit - unit.mean(0)
    values = torch.linalg.svdvals(centered)
    shares = values / values.sum().clamp(min=1e-12)
    pairs = max(1, count * (count - 1))
    return {
        STD: dimensions**0.5 * centered.square().mean(0).sqrt().mean(),
        RANK: torch.special.entr(shares).sum().exp() * (values.sum() > 1e-6),
        COSINE: (unit.sum(0).square().sum() - unit.square().sum()) / pairs,
        VECTORS: torch.tensor(float(count), device=vectors.device),
    }


def collapse_of(metrics: Mapping[str, float], least_vectors: int) -> str | None:
    """Return in one line what has collapsed; None where nothing has, or of fewer vectors than `least_vectors`."""
    if metrics.get(VECTORS, 0) < least_vectors:
        return None
    std, rank, cosine = metrics[STD], metrics[RANK], metrics[COSINE]
    signs = []
    if std < _LEAST_STD:
        signs.append(f"std {std:.3f} < {_LEAST_STD}: projections are about the same")
    if cosine > _MOST_COSINE:
        signs.append(f"mean cosine {cosine:.3f} > {_MOST_COSINE}: different images look alike")
    if rank < _LEAST_RANK:
        signs.append(f"effective rank {rank:.1f} < {_LEAST_RANK:g}: projections lie in few dimensions")
    return f"collapse: {'; '.join(signs)}" if signs else None
