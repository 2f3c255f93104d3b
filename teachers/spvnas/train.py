"""From labelled points to a lidar teacher on disk."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import torch

from teachers.card import TeacherCard, write_card, write_weights
from teachers.confusion import Confusion
from teachers.evaluation import compare_with_labels, measure_statistics
from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.objective import (
    POINT_CLASSES,
    Augmentation,
    SpvcnnObjective,
    count_classes,
    has_labels,
    shows_points,
    weights_of_classes,
)
from teachers.spvnas.teacher import ARCHITECTURE, SpvnasTeacher, network_options
from teachers.training import RunContext, TeacherData, train_teacher, versions
from training.errors import TrainingError
from training.loop import LoopConfig
from training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class SpvcnnTrainConfig:
    """How SPVCNN is trained. The defaults suit simulated scans of 64 x 650 cells and two CPU cores."""

    # Share of SPVCNN's full width: point features are 96 times this.
    width: float = 0.25
    # Side of a voxel in metres. The authors' 0.05 m leaves the voxels of sparse scans without neighbors.
    voxel_m: float = 0.2
    # Share of point features that training hides.
    dropout: float = 0.1
    # Samples with labels that class weights are measured on, and samples for the statistics of features.
    measured_samples: int = 128
    # How scans are augmented.
    augmentation: Augmentation = field(default_factory=Augmentation)
    # Labelled samples per step.
    batch: int = 4
    # How fast.
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(muon_lr_factor=0.0))
    # How long, and in which number format.
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=250, warmup=0.1, checkpoint_every=50))

    def network(self) -> NetworkConfig:
        """Return the widths of the network."""
        config = NetworkConfig.spvcnn(self.width, len(POINT_CLASSES))
        return replace(config, voxel_m=self.voxel_m, dropout=self.dropout)


def train_spvcnn(
    config: SpvcnnTrainConfig, data: TeacherData, context: RunContext
) -> tuple[TeacherCard, Confusion] | None:
    """Train and evaluate an SPVCNN; write weights and card into the context's folder and return its metrics.

    Of several workers the first alone evaluates and writes; the others return None.

    Raises TrainingError before the first step where there would be nothing to measure after the last.
    """
    _check_projections(data, config.measured_samples)
    torch.manual_seed(context.seed)
    network_config = config.network()
    network = SPVCNN(network_config)
    epoch = itertools.islice(data.endless(0), data.epoch_samples)
    labelled = itertools.islice(filter(has_labels, epoch), config.measured_samples)
    objective = SpvcnnObjective(network, weights_of_classes(count_classes(labelled)), config.augmentation)
    if config.loop.precision == "auto":
        # Even where the hardware multiplies bfloat16 itself. CPUs take four times as long for products of so few
        # columns; and under any autocast torchsparse 1.4 convolves in float16, in which small gradients are lost.
        config = replace(config, loop=replace(config.loop, precision="float32"))
    trained = train_teacher(objective, config, has_labels, data, context)
    if not context.evaluates:
        return None
    raw = TeacherCard(
        name="spvcnn",
        kind="regression",
        architecture=ARCHITECTURE,
        options=network_options(network_config),
        channels=network_config.feature_width,
        class_names=POINT_CLASSES,
        weights_sha256=write_weights(context.folder, network.state_dict()),
        data=data.data,
        versions=versions(),
    )
    teacher = SpvnasTeacher(raw, network)
    first = itertools.islice(data.endless(0), min(config.measured_samples, data.epoch_samples))
    statistics = measure_statistics(teacher, first)
    confusion = compare_with_labels(teacher, data.evaluation())
    card = replace(raw, statistics=statistics, metrics=confusion.metrics(POINT_CLASSES) | trained)
    write_card(context.folder, card)
    return card, confusion


def _check_projections(data: TeacherData, samples: int) -> None:
    """Raise TrainingError unless one of the samples that statistics are measured on shows a TOP point."""
    looked_at = min(samples, data.epoch_samples)
    if not any(map(shows_points, itertools.islice(data.endless(0), looked_at))):
        raise TrainingError(
            f"not one of {looked_at:,} images shows a point of the TOP laser: the records have no projections into this"
            " camera, or outside of its image; build the lake from records that have them, or name another camera"
        )
