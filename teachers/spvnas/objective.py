"""The objective of SPVCNN: the class of each lidar point."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from datalake.sample import Lidar, Sample
from datalake.sources.frame import LASERS
from teachers.classes import IGNORED, LIDAR_CLASSES, lidar_truth_table
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.scan import Scan, ScanError
from teachers.spvnas.teacher import scan_of
from teachers.spvnas.voxels import VoxelBatch, voxelize_scans
from training.errors import TrainingError
from training.generators import Chance
from training.objective import Batch, Loss, Objective, ParameterGroup

# The lake's own classes, all of them: what a student imitates are the features below the classifier, and these are
# the richer the more classes there are. UNDEFINED is no class: those points have no loss.
POINT_CLASSES = LIDAR_CLASSES[1:]
_TRUTH = torch.tensor(lidar_truth_table(POINT_CLASSES))
_TOP = LASERS.index("TOP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What is done to a scan before it is trained on, at random.

    Streets have no preferred direction, and few segments do not show all of them.
    """

    # Rotation about the vertical within ± this.
    turn_rad: float = math.pi
    # Size within 1 ± this.
    scale: float = 0.05
    # Left for right, half the time.
    mirror: bool = True

    def apply(self, scan: Scan, generator: torch.Generator) -> Scan:
        """Return the scan moved as the generator has it."""
        turn, scale, side = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
        angle, factor = (2 * turn - 1) * self.turn_rad, 1 + (2 * scale - 1) * self.scale
        mirror = -1.0 if self.mirror and side < 0.5 else 1.0
        cosine, sine = math.cos(angle) * factor, math.sin(angle) * factor
        matrix = np.array([[cosine, -sine * mirror, 0], [sine, cosine * mirror, 0], [0, 0, factor]], np.float32)
        return replace(scan, xyz_m=scan.xyz_m @ matrix.T)


@dataclass(frozen=True, slots=True, eq=False)
class PointBatch:
    """Scans as voxels, and the class in POINT_CLASSES or IGNORED of each voxel's point, int64 [N]."""

    voxels: VoxelBatch
    truth: Tensor


class SpvcnnObjective(Objective):
    """Cross-entropy over the labelled points of the TOP laser, one point a voxel.

    class_weights: float32 [22], see `weights_of_classes`
    """

    def __init__(self, network: SPVCNN, class_weights: Tensor, augmentation: Augmentation) -> None:
        super().__init__()
        self.network = network
        self.class_weights = nn.Buffer(class_weights)
        self._augmentation = augmentation

    def collate(self, batch: Batch, targets: Mapping[str, Any], chance: Chance) -> PointBatch:
        """Return the scans, augmented, as voxels with their classes."""
        del targets
        scans = [
            self._augmentation.apply(_scan(sample), generator)
            for sample, generator in zip(batch.samples, chance.generators(), strict=True)
        ]
        device = self.class_weights.device
        voxels = voxelize_scans(scans, self.network.config.voxel_m, device)
        truth = torch.cat([point_truth(sample) for sample in batch.samples]).to(device)[voxels.taken]
        return PointBatch(voxels, truth)

    def forward(self, batch: PointBatch, progress: float) -> dict[str, Loss]:
        """Return the mean cross-entropy of the batch's labelled voxels, each weighted by its class; 0 without any."""
        del progress
        answer = self.network(batch.voxels.features, batch.voxels.positions, batch.voxels.batch)
        # A labelled point may share its voxel with one that is not, whose features then are of both.
        labelled = batch.truth != IGNORED
        weight = self.class_weights[batch.truth.where(labelled, 0)].where(labelled, 0.0).sum()
        total = functional.cross_entropy(
            answer.logits.float(), batch.truth, self.class_weights, ignore_index=IGNORED, reduction="sum"
        )
        return {"cross_entropy": Loss(total / weight.clamp(min=1e-6))}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the network's parameters, none of them Muon's: it has not been tried on sparse kernels."""
        return [ParameterGroup("spvcnn", list(self.network.parameters()), [])]

    def product(self) -> SPVCNN:
        """Return the network."""
        return self.network

    def config(self) -> str:
        """Return the network's widths as JSON."""
        return json.dumps(asdict(self.network.config))


def point_truth(sample: Sample) -> Tensor:
    """Return int64 [P], the class in POINT_CLASSES of each TOP point, or IGNORED."""
    lidar = _lidar(sample)
    top = lidar.laser == _TOP
    if lidar.semantic_class is None:
        return torch.full((int(top.sum()),), IGNORED)
    return _TRUTH[lidar.semantic_class[top].long()]


def has_labels(sample: Sample) -> bool:
    """Return whether one of the frame's TOP points or more has a class in POINT_CLASSES."""
    return bool((point_truth(sample) != IGNORED).any())


def shows_points(sample: Sample) -> bool:
    """Return whether the image shows one of the frame's TOP points or more."""
    lidar = _lidar(sample)
    (u, v), (height, width) = lidar.pixel_uv, sample.image.shape[1:]
    top = lidar.laser[lidar.pixel_point.long()] == _TOP
    return bool((top & (u >= 0) & (u < width) & (v >= 0) & (v < height)).any())


def count_classes(samples: Iterable[Sample]) -> Tensor:
    """Return int64 [22], how many of the samples' TOP points are of each of POINT_CLASSES."""
    counts = torch.zeros(len(POINT_CLASSES), dtype=torch.int64)
    for sample in samples:
        truth = point_truth(sample)
        counts += torch.bincount(truth[truth != IGNORED], minlength=len(POINT_CLASSES))
    return counts


def weights_of_classes(counts: Tensor, limit: float = 10.0) -> Tensor:
    """Return float32 [22], how much a point of each class weighs: 1 / sqrt(its share), so that rare classes count.

    Weights are scaled so that the mean over all points is 1, and cut at `limit`: a class of a dozen points must not
    drown the others. A class that was not met weighs as much as the rarest that was: it may come yet. Raises
    TrainingError where no class occurs.
    """
    if not bool(counts.any()):
        raise TrainingError("no labelled points of the TOP laser in the samples that were read")
    share = counts.double() / counts.sum()
    weights = share.where(counts > 0, share[counts > 0].min()).rsqrt()
    return (weights / (weights * share).sum()).clamp(max=limit).float()


def _scan(sample: Sample) -> Scan:
    try:
        return scan_of(_lidar(sample))
    except ScanError as error:
        raise TrainingError(f"{sample.key.segment} {sample.key.timestamp_us}: {error}") from error


def _lidar(sample: Sample) -> Lidar:
    if sample.lidar is None:
        raise TrainingError("samples without points: let the loader read them (LoaderConfig(points=True))")
    return sample.lidar
