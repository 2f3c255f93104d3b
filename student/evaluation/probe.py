"""Linear probes: what can be read off frozen features by a linear layer (Alain and Bengio 2016; paper, section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

# No rate fits all features; each probe has the one that is best on frames of its own.
RATES = (1e-3, 1e-2, 1e-1)
_STEPS, _BATCH = 300, 4096
_LEAST_STD = 1e-6
_DELTA1 = 1.25


@dataclass(frozen=True, slots=True, eq=False)
class ProbeRows:
    """Features, and what is to be read off them.

    features: float32 [N, C]
    labels: classes int64 [N]; or numbers above 0, float32 [N]
    frame: int64 [N], which frame each is of, numbered from 0
    """

    features: Tensor
    labels: Tensor
    frame: Tensor

    def of_frames(self, frames: Tensor) -> ProbeRows:
        """Return the rows of some frames, int64 [F]."""
        kept = torch.isin(self.frame, frames)
        return ProbeRows(self.features[kept], self.labels[kept], self.frame[kept])


class LinearProbe(nn.Module):
    """A standardization without parameters, by the rows that it learns from, and a 1 x 1 convolution.

    classes: how many there are; None: a positive number is predicted, by its logarithm
    """

    mean: Tensor
    std: Tensor
    center: Tensor
    spread: Tensor

    def __init__(self, rows: ProbeRows, classes: int | None) -> None:
        super().__init__()
        features = rows.features.double()
        self.register_buffer("mean", features.mean(0).float()[:, None, None])
        std = features.std(0, correction=0).clamp(min=_LEAST_STD)
        self.register_buffer("std", std.float()[:, None, None])
        logarithms = torch.zeros(1) if classes is not None else rows.labels.double().log()
        self.register_buffer("center", logarithms.mean().float())
        self.register_buffer("spread", logarithms.std(correction=0).clamp(min=_LEAST_STD).float())
        self.classes = classes
        self.layer = nn.Conv2d(features.shape[1], classes or 1, 1)
        # Where all start alike, no seed decides.
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, K, h, w] of features [B, C, h, w]; for numbers, K = 1, standardized logarithms."""
        found: Tensor = self.layer((features - self.mean) / self.std)
        return found

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Return classes int64 or numbers float32 [B, h, w] for features [B, C, h, w]."""
        found = self(features)
        return found.argmax(1) if self.classes is not None else (found[:, 0] * self.spread + self.center).exp()


class ClassesRead:
    """How well classes are read: counts over everything that was added."""

    def __init__(self, classes: int) -> None:
        self._counts = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Count predictions int64 [N] and their labels, int64 [N]."""
        pairs = labels * len(self._counts) + predicted
        self._counts += pairs.bincount(minlength=self._counts.numel()).view_as(self._counts)

    def metrics(self) -> dict[str, float]:
        """Return means over the classes that are labelled: `mIoU`, and `recall`, which is 1 / classes by chance."""
        right, there, said = self._counts.diagonal().double(), self._counts.sum(1), self._counts.sum(0)
        known = there > 0
        union = (there + said).double() - right
        return {
            "mIoU": float((right / union.clamp(min=1))[known].mean()),
            "recall": float((right / there.clamp(min=1))[known].mean()),
        }


class NumbersRead:
    """How well positive numbers are read."""

    def __init__(self) -> None:
        self._relative: list[Tensor] = []
        self._ratio: list[Tensor] = []

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Count predictions float32 [N] and their labels, float32 [N]."""
        predicted, labels = predicted.double(), labels.double()
        self._relative.append((predicted - labels).abs() / labels)
        self._ratio.append(torch.maximum(predicted / labels, labels / predicted))

    def metrics(self) -> dict[str, float]:
        """Return `AbsRel`, the mean of |p - t| / t, and `delta1`, the share with max(p / t, t / p) < 1.25."""
        ratio = torch.cat(self._ratio)
        return {
            "AbsRel": float(torch.cat(self._relative).mean()),
            "delta1": float((ratio < _DELTA1).double().mean()),
        }


def scores_of(classes: int | None) -> ClassesRead | NumbersRead:
    """Return empty scores of classes, or of numbers."""
    return NumbersRead() if classes is None else ClassesRead(classes)


def fit_probe(rows: ProbeRows, classes: int | None, rate: float, seed: int = 0) -> LinearProbe:
    """Return a probe that was trained on the rows, every class with the same weight, by AdamW with a cosine schedule.

    rate: of learning, at its peak; seed: decides which rows come together
    """
    probe = LinearProbe(rows, classes)
    weights = None if classes is None else _balanced(rows.labels, classes)
    optimizer = torch.optim.AdamW(probe.parameters(), rate)
    drawn = torch.Generator().manual_seed(seed)
    count = len(rows.features)
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * step / _STEPS)) / 2
        chosen = torch.randint(count, (_BATCH,), generator=drawn) if count > _BATCH else slice(None)
        found = probe(as_map(rows.features[chosen]))[0, :, 0].T
        labels = rows.labels[chosen]
        if classes is None:
            loss = smooth_l1_loss(found[:, 0], (labels.log() - probe.center) / probe.spread)
        else:
            loss = cross_entropy(found, labels, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return probe.eval().requires_grad_(False)


def tuned_probe(rows: ProbeRows, tuning: ProbeRows, classes: int | None, seed: int = 0) -> tuple[LinearProbe, float]:
    """Return the probe whose rate, of RATES, is best on the tuning rows, from which none learns; and that rate.

    Best is the highest mIoU, or the lowest AbsRel.
    """
    fitted = [(fit_probe(rows, classes, rate, seed), rate) for rate in RATES]

    def goodness(candidate: tuple[LinearProbe, float]) -> float:
        metrics = read_rows(candidate[0], tuning).metrics()
        return metrics["mIoU"] if classes is not None else -metrics["AbsRel"]

    return max(fitted, key=goodness)


def read_rows(probe: LinearProbe, rows: ProbeRows) -> ClassesRead | NumbersRead:
    """Return how well the probe reads the rows."""
    scores = scores_of(probe.classes)
    scores.add(probe.predict(as_map(rows.features))[0, 0], rows.labels)
    return scores


def as_map(features: Tensor) -> Tensor:
    """Return features [N, C] as a map [1, C, 1, N] of N cells: of N maps, convolutions are far slower."""
    return features.T[None, :, None]


def guess(rows: ProbeRows, classes: int | None) -> float:
    """Return what to say of everything without looking: the most frequent class, or the number of the least AbsRel."""
    if classes is not None:
        return float(rows.labels.bincount(minlength=classes).argmax())
    ascending = rows.labels.double().sort().values
    weight = (1 / ascending).cumsum(0)
    return float(ascending[int((weight < weight[-1] / 2).sum())])


def draw_rows(
    maps: Tensor, labels: Tensor, frame: int, most: int, seed: int, known: Callable[[Tensor], Tensor]
) -> ProbeRows:
    """Return at most so many of a frame's cells whose label is known, drawn evenly.

    maps: float32 [C, h, w]; labels: [h, w]; known: bool of labels
    """
    cells = known(labels).flatten().nonzero()[:, 0]
    chosen = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))[:most]]
    return ProbeRows(
        maps.flatten(1)[:, chosen].T.contiguous(), labels.flatten()[chosen], torch.full((len(chosen),), frame)
    )


def joined(rows: Sequence[ProbeRows]) -> ProbeRows:
    """Return all of them as one."""
    return ProbeRows(
        torch.cat([one.features for one in rows]),
        torch.cat([one.labels for one in rows]),
        torch.cat([one.frame for one in rows]),
    )


def _balanced(labels: Tensor, classes: int) -> Tensor:
    """Return a weight float32 [classes]: those that occur share the rows' weight evenly, the others have none."""
    counts = labels.bincount(minlength=classes).double()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0).float()
