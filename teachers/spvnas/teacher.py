"""The lidar teacher: SPVCNN's point features, where the camera sees the points."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import fsspec
import torch
from torch import Tensor

from datalake.sample import Lidar, Sample
from datalake.sources.frame import LASERS, Points
from teachers.card import ChannelStatistics, TeacherCard, TeacherError, read_card, read_weights
from teachers.classes import lidar_truth_table
from teachers.confusion import Confusion
from teachers.sparse.choice import BackendName
from teachers.spvnas.classes import CLASSES
from teachers.spvnas.config import NetworkConfig, ResidualConfig, StageConfig
from teachers.spvnas.network import SPVCNN, PointPrediction
from teachers.spvnas.point_teacher import LidarTeacher, load_network, read_net_config
from teachers.spvnas.projection import Projections, cell_points, place
from teachers.spvnas.scan import Scan, waymo_points
from teachers.spvnas.state_dict_adapter import CheckpointError, adapt, load_strictly
from teachers.spvnas.voxels import voxelize
from teachers.statistics import standardize
from teachers.target import Target
from teachers.transfer import joined_on_device

ARCHITECTURE = "spvcnn"
_TOP = LASERS.index("TOP")


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """What the network says of the frames of some samples.

    starts: the number of each frame's first TOP point among those of all frames
    voxel: int64 [P], each point's row in `prediction`
    """

    starts: dict[tuple[str, int], int]
    voxel: Tensor
    prediction: PointPrediction


class SpvnasTeacher:
    """An SPVCNN or SPVNAS as a teacher: D point features per cell, standardized with the card's statistics.

    Only returns of the TOP laser take part, each frame's once, however many of its cameras are in a batch. A cell
    shows the point nearest to the camera; `dilate` lets neighbors fill empty cells (`teachers.spvnas.projection`).
    With a card without statistics the features are as the network gives them: that is for measuring the statistics.
    """

    def __init__(self, card: TeacherCard, network: SPVCNN, *, dilate: bool = False) -> None:
        if card.channels != network.config.feature_width or len(card.class_names) != network.config.classes:
            raise TeacherError(
                f"teacher {card.name}: the card has {card.channels} channels and {len(card.class_names)} classes,"
                f" the network {network.config.feature_width} and {network.config.classes}"
            )
        self.card, self.dilate = card, dilate
        self._lidar = LidarTeacher(network)

    @staticmethod
    def load(
        url: str, device: torch.device | str = "cpu", *, backend: BackendName = "auto", dilate: bool = False
    ) -> SpvnasTeacher:
        """Return the teacher in a folder; raises TeacherError where anything there does not fit together."""
        card = read_card(url)
        if card.architecture != ARCHITECTURE:
            raise TeacherError(f"{url}: expected architecture {ARCHITECTURE}, got: {card.architecture}")
        network = SPVCNN(network_config(card.options), backend)
        try:
            load_strictly(network, adapt(read_weights(url, card)), url)
        except CheckpointError as error:
            raise TeacherError(str(error)) from error
        return SpvnasTeacher(card, network.to(device), dilate=dilate)

    @staticmethod
    def load_public(
        weights_url: str,
        net_config_url: str,
        device: torch.device | str = "cpu",
        *,
        statistics: ChannelStatistics | None = None,
        backend: BackendName = "auto",
        dilate: bool = False,
    ) -> SpvnasTeacher:
        """Return a public checkpoint of SemanticKITTI and its net.config as a teacher.

        statistics: of its features over the lake at hand; None for measuring them
        """
        config = read_net_config(net_config_url)
        network = load_network(config, weights_url, backend)
        with fsspec.open(weights_url, "rb") as file:
            sha256 = hashlib.sha256(file.read()).hexdigest()
        card = TeacherCard(
            name="spvnas",
            kind="regression",
            architecture=ARCHITECTURE,
            options=network_options(config),
            channels=config.feature_width,
            class_names=CLASSES,
            statistics=statistics,
            weights_sha256=sha256,
        )
        return SpvnasTeacher(card, network.to(device), dilate=dilate)

    @property
    def network(self) -> SPVCNN:
        """The frozen network."""
        return self._lidar.network

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return float32 [B, D, height, width]; valid where a TOP point shows.

        Raises TeacherError for a sample that was loaded without points.
        """
        lidars = [_lidar(sample).of_laser(_TOP) for sample in samples]
        answer = self._answer(samples, lidars)
        sizes = [(sample.image.shape[1], sample.image.shape[2]) for sample in samples]
        starts = [answer.starts[_frame(sample)] for sample in samples]
        point = cell_points(
            Projections.of(lidars, starts, sizes, answer.voxel.device), (height, width), dilate=self.dilate
        )
        # The last entry answers for the cells without a point.
        row = torch.cat([answer.voxel, answer.voxel.new_full((1,), -1)])[point]
        target = Target(tuple(sample.key for sample in samples), *place(answer.prediction.features.float(), row))
        return target if self.card.statistics is None else standardize(target, self.card.statistics)

    def class_probabilities(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Return for each sample float32 [P, K] on the CPU: how likely its frame's TOP points are of each class.

        Raises TeacherError for a sample that was loaded without points.
        """
        if not samples:
            return []
        lidars = [_lidar(sample).of_laser(_TOP) for sample in samples]
        answer = self._answer(samples, lidars)
        probabilities = answer.prediction.logits.float().softmax(1)[answer.voxel].cpu()
        starts = [answer.starts[_frame(sample)] for sample in samples]
        return [
            probabilities[start : start + lidar.points.shape[1]] for start, lidar in zip(starts, lidars, strict=True)
        ]

    def confusion(self, samples: Sequence[Sample]) -> Confusion:
        """Return how the network names the labelled TOP points, each frame counted once."""
        classes = len(self.card.class_names)
        truth_of = torch.tensor(lidar_truth_table(self.card.class_names))
        counts = Confusion.empty(classes)
        labelled = [sample for sample in samples if _lidar(sample).semantic_class is not None]
        frames = list({_frame(sample): sample for sample in labelled}.values())
        if not frames:
            return counts
        lidars = [_lidar(sample).of_laser(_TOP) for sample in frames]
        answer = self._answer(frames, lidars)
        found = answer.prediction.logits.argmax(1)[answer.voxel].cpu()
        for lidar, sample in zip(lidars, frames, strict=True):
            if lidar.semantic_class is not None:
                start = answer.starts[_frame(sample)]
                truth = truth_of[lidar.semantic_class.long()]
                counts += Confusion.of(truth, found[start : start + len(truth)], classes)
        return counts

    def _answer(self, samples: Sequence[Sample], lidars: Sequence[Lidar]) -> _Answer:
        """Return what the network says of the samples' TOP points, each frame's once."""
        device = next(self.network.parameters()).device
        frames = {_frame(sample): lidar.points for sample, lidar in zip(samples, lidars, strict=True)}
        counts = tuple(points.shape[1] for points in frames.values())
        points = joined_on_device(list(frames.values()), device, 1)
        voxels = voxelize(waymo_points(points), counts, self.network.config.voxel_m)
        starts = dict(zip(frames, accumulate(counts, initial=0), strict=False))
        return _Answer(starts, voxels.voxel, self._lidar.ask(voxels))


def scan_of(lidar: Lidar) -> Scan:
    """Return the TOP points of a sample's frame as the network is to see them; `source` counts the sample's points."""
    return Scan.from_waymo(
        replace(
            Points.empty(),
            xyz_m=lidar.points[:3].numpy(),
            intensity=lidar.points[3].numpy(),
            laser=lidar.laser.numpy(),
        )
    )


def network_options(config: NetworkConfig) -> dict[str, Any]:
    """Return the configuration as the plain values of a card's `options`."""
    options: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return options


def network_config(options: Mapping[str, Any]) -> NetworkConfig:
    """Return the configuration in a card's `options`; raises TeacherError where they are not one."""

    def stages(name: str) -> tuple[StageConfig, ...]:
        return tuple(
            StageConfig(
                transition=stage["transition"], blocks=tuple(ResidualConfig(**block) for block in stage["blocks"])
            )
            for stage in options[name]
        )

    try:
        return NetworkConfig(**{**options, "down": stages("down"), "up": stages("up")})
    except (KeyError, TypeError) as error:
        raise TeacherError(f"the card's options are not those of an SPVCNN: {error}") from error


def _frame(sample: Sample) -> tuple[str, int]:
    return sample.key.segment, sample.key.timestamp_us


def _lidar(sample: Sample) -> Lidar:
    if sample.lidar is None:
        raise TeacherError(f"{sample.key}: loaded without points, which the lidar teacher looks at; use points=True")
    return sample.lidar
