"""Whether a network that learns without labels still tells images apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

STD, RANK, COSINE, VECTORS = "collapse/std", "collapse/effective_rank", "collapse/cosine", "collapse/vectors"
DIMENSIONS = "collapse/dimensions"
# Mean cosine of cells of one image; entropy of a teacher's answers, and of their mean, in shares of the largest.
FLATNESS, ENTROPY, MEAN_ENTROPY = "collapse/flatness", "collapse/entropy", "collapse/mean_entropy"
# Beyond these a representation is as good as lost; 1, a large share of the dimensions, and 0 would be ideal.
_LEAST_STD, _LEAST_RANK, _MOST_COSINE = 0.2, 4.0, 0.9
_MOST_FLATNESS, _MOST_ENTROPY, _LEAST_MEAN_ENTROPY = 0.95, 0.99, 0.1
_OF, _OF_VECTORS = "collapse/", (STD, RANK, COSINE)


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
    def metrics(self, of: str = "") -> dict[str, Tensor]:
        """Return `collapse_metrics` of those that there are, under `collapse/<of>/…` where it has a name."""
        found = collapse_metrics(self.vectors[: int(self.count)])
        return {f"{_OF}{of}/{name.removeprefix(_OF)}" if of else name: value for name, value in found.items()}


def collapse_metrics(vectors: Tensor) -> dict[str, Tensor]:
    """Return what tells whether vectors float32 [n, d] of n images have collapsed, each scaled to length 1 first.

    `collapse/std`: sqrt(d) times the mean over dimensions of the deviation; 1: in all directions alike, 0: constant
    `collapse/effective_rank`: exp of the entropy of the singular values' shares (Roy and Vetterli 2007), centered;
        0 where all vectors are the same
    `collapse/cosine`: mean of different images' cosines
    `collapse/dimensions`, `collapse/vectors`: d and n
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
        DIMENSIONS: torch.tensor(float(dimensions), device=vectors.device),
        VECTORS: torch.tensor(float(count), device=vectors.device),
    }


@torch.no_grad()
def flatness(cells: Tensor) -> Tensor:
    """Return the mean cosine of different cells of one image, over images; cells: float32 [B, N, d]."""
    unit = normalize(cells.double(), dim=2)
    count = cells.shape[1]
    return ((unit.sum(1).square().sum(1) - unit.square().sum((1, 2))) / max(1, count * (count - 1))).mean()


def collapse_of(metrics: Mapping[str, float], least_vectors: int) -> str | None:
    """Return in one line what has collapsed; None where nothing has, or of fewer vectors than `least_vectors`.

    Several kinds of vectors may be there, each under `collapse/<its name>/…`.
    """
    kinds = [name.removesuffix("vectors") for name in metrics if name.startswith(_OF) and name.endswith("/vectors")]
    if not any(metrics[f"{kind}vectors"] >= least_vectors for kind in kinds):
        return None
    signs = []
    for kind in kinds:
        if metrics[f"{kind}vectors"] >= least_vectors and f"{kind}std" in metrics:
            told = kind.removeprefix(_OF).replace("/", ": ")
            known = {name: metrics[f"{kind}{name.removeprefix(_OF)}"] for name in _OF_VECTORS}
            signs += [f"{told}{sign}" for sign in _signs(known)]
    if (flat := metrics.get(FLATNESS, 0.0)) > _MOST_FLATNESS:
        signs.append(f"flatness {flat:.3f} > {_MOST_FLATNESS}: all cells of an image look alike")
    if (entropy := metrics.get(ENTROPY, 0.0)) > _MOST_ENTROPY:
        signs.append(f"entropy {entropy:.3f} > {_MOST_ENTROPY}: the teacher says the same of everything, all classes")
    if (entropy := metrics.get(MEAN_ENTROPY, 1.0)) < _LEAST_MEAN_ENTROPY:
        signs.append(f"mean entropy {entropy:.3f} < {_LEAST_MEAN_ENTROPY}: the teacher knows few classes")
    return f"collapse: {'; '.join(signs)}" if signs else None


def summary(metrics: Mapping[str, float]) -> str:
    """Return in words how far vectors are spread, of each kind that is in the metrics."""
    told = []
    for name in metrics:
        if name.startswith(_OF) and name.endswith("/effective_rank"):
            kind = name.removesuffix("effective_rank")
            std, dimensions, vectors = (metrics[f"{kind}{each}"] for each in ("std", "dimensions", "vectors"))
            of = f" of {kind.removeprefix(_OF).rstrip('/')}" if kind != _OF else ""
            rank = f"effective rank {metrics[name]:.0f} of {dimensions:.0f}"
            told.append(f"std {std:.2f}, {rank} in {vectors:,.0f} projections{of}")
    if ENTROPY in metrics:
        told.append(f"entropy {metrics[ENTROPY]:.2f} of each answer, {metrics[MEAN_ENTROPY]:.2f} of their mean")
    return "; ".join(told) or "whether projections collapse was not measured"


def _signs(metrics: Mapping[str, float]) -> list[str]:
    std, rank, cosine = metrics[STD], metrics[RANK], metrics[COSINE]
    signs = []
    if std < _LEAST_STD:
        signs.append(f"std {std:.3f} < {_LEAST_STD}: projections are about the same")
    if cosine > _MOST_COSINE:
        signs.append(f"mean cosine {cosine:.3f} > {_MOST_COSINE}: different images look alike")
    if rank < _LEAST_RANK:
        signs.append(f"effective rank {rank:.1f} < {_LEAST_RANK:g}: projections lie in few dimensions")
    return signs
