"""K-means, Kneedle and the losses of pre-training against the libraries that others use.

    pip install --no-deps --target PEERS -r benchmarks/pretraining_peers.txt
    PYTHONPATH=PEERS python -m benchmarks.pretraining_peers

scikit-learn and scipy (clusters, matchings), kneed (knees), lightly (BYOL's, DINO's and DetCon's losses). Prints a line
for each and ends with 1 where one differs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch

from student.evaluation.incremental_assignment import IncrementalAssignment
from student.evaluation.knee import kneedle
from student.pretraining.byol import byol_loss
from student.pretraining.dino import dino_loss, sharpened
from student.pretraining.kmeans import lloyd
from student.pretraining.odin import detcon_loss


def clusters() -> str:
    """Compare labels and inertia with scikit-learn's, from the same centers."""
    from sklearn.cluster import KMeans

    different, farthest = 0, 0.0
    for seed in range(50):
        random = np.random.default_rng(seed)
        points, count = random.normal(size=(300, 8)).astype(np.float32), int(random.integers(2, 12))
        start = points[random.choice(300, count, replace=False)]
        theirs = KMeans(count, init=start, n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(points)
        ours = lloyd(torch.from_numpy(points)[None], torch.from_numpy(start)[None], rounds=300)
        different += int((ours.labels[0].numpy() != theirs.labels_).sum())
        farthest = max(farthest, abs(float(ours.inertia) / theirs.inertia_ - 1))
    _check(different == 0 and farthest < 1e-4)
    return f"50 clusterings: {different} labels differ, inertia by {farthest:.1e} at most"


def knees() -> str:
    """Compare knees of 500 random convex falling curves with kneed's."""
    from kneed import KneeLocator

    different = 0
    for seed in range(500):
        random = np.random.default_rng(seed)
        count = int(random.integers(4, 24))
        steps = np.sort(random.exponential(size=count - 1))[::-1]
        curve = 100 - np.concatenate([[0], np.cumsum(steps)])
        found = KneeLocator(np.arange(1, count + 1), curve, S=1.0, curve="convex", direction="decreasing").knee
        different += (None if found is None else int(found)) != kneedle(curve)
    _check(different == 0)
    return f"500 curves: {different} knees differ"


def matchings() -> str:
    """Compare the sum of matched weights with scipy's."""
    from scipy.optimize import linear_sum_assignment

    farthest = 0.0
    for seed in range(200):
        random = np.random.default_rng(seed)
        weights = random.integers(0, 1000, tuple(random.integers(1, 12, 2)))
        matching = IncrementalAssignment()
        for row in weights.tolist():
            matching.add([(number, weight) for number, weight in enumerate(row) if weight > 0])
        ours = sum(int(weights[pair]) for pair in matching.pairs.items())
        farthest = max(farthest, abs(ours - int(weights[linear_sum_assignment(weights, maximize=True)].sum())))
    _check(farthest == 0)
    return f"200 matchings: sums differ by {farthest:g} at most"


def byol() -> str:
    """Compare with 2 + 2 times the negative cosine."""
    from lightly.loss import NegativeCosineSimilarity

    one, other = torch.randn(2, 16, 8)
    return _difference(float(byol_loss(one, other)), 2 + 2 * float(NegativeCosineSimilarity()(one, other)))


def dino() -> str:
    """Compare three steps, with their center, for none to three small crops."""
    from lightly.loss import DINOLoss

    told = []
    for small in range(4):
        theirs = DINOLoss(output_dim=32, teacher_temp=0.04, student_temp=0.1, center_momentum=0.9)
        center = torch.zeros(32)
        for _ in range(3):
            teacher, student = torch.randn(2, 4, 32), torch.randn(2 + small, 4, 32)
            expected = theirs(list(teacher), list(student), teacher_temp=0.04)
            found = dino_loss(sharpened(teacher, center, 0.04), student, 0.1)
            told.append(_difference(float(found), float(expected)))
            center = 0.9 * center + 0.1 * teacher.mean((0, 1))
    return f"12 steps, the last: {told[-1]}"


def detcon() -> str:
    """Compare regions that all views show, each once."""
    from lightly.loss import DetConBLoss

    pred1, pred2, target1, target2 = torch.randn(4, 3, 5, 8)
    numbers = torch.arange(5).expand(3, -1)
    theirs = DetConBLoss(temperature=0.1, gather_distributed=False)
    expected = theirs(pred1, pred2, target1, target2, numbers, numbers)
    there = torch.ones(3, 5, dtype=torch.bool)
    first = detcon_loss(pred1, target2, target1, there, there, 0.1, True)
    second = detcon_loss(pred2, target1, target2, there, there, 0.1, True)
    return _difference(float(first + second), float(expected))


def _difference(ours: float, theirs: float) -> str:
    _check(abs(ours - theirs) <= 1e-4 * max(1.0, abs(theirs)))
    return f"{ours:.6f}, {theirs:.6f} there"


class DifferentError(AssertionError):
    """A library says something else."""


def _check(alike: bool) -> None:
    if not alike:
        raise DifferentError


def main() -> int:
    """Compare, print, and return the exit status."""
    torch.manual_seed(0)
    comparisons: dict[str, Callable[[], str]] = {
        "scikit-learn, K-means": clusters,
        "kneed": knees,
        "scipy, matchings": matchings,
        "lightly, BYOL": byol,
        "lightly, DINO": dino,
        "lightly, DetCon": detcon,
    }
    status = 0
    for name, compare in comparisons.items():
        try:
            print(f"{name:<24}{compare()}")
        except DifferentError:
            print(f"{name:<24}DIFFERENT: {compare.__doc__}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
