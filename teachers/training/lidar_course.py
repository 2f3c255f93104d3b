"""From lessons to a lidar teacher on disk."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import torch

from teachers.card import TeacherCard, write_card, write_weights
from teachers.confusion import Confusion
from teachers.lidar import ARCHITECTURE, SpvnasTeacher, network_options
from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import SPVCNN
from teachers.training.evaluation import compare_with_labels, measure_statistics
from teachers.training.lessons import Lessons, Room, versions
from teachers.training.lidar import (
    POINT_CLASSES,
    Augmentation,
    LidarTask,
    count_classes,
    has_labels,
    weights_of_classes,
)
from training.loop import LoopConfig, train


@dataclass(frozen=True, kw_only=True)
class LidarCourse:
    """How SPVCNN is trained. The defaults suit simulated scans of 64 x 650 cells and two CPU cores."""

    # Share of SPVCNN's full width: point features are 96 times this.
    width: float = 0.25
    # Side of a voxel in metres. The authors' 0.05 m leaves the voxels of sparse scans without neighbours.
    voxel_m: float = 0.2
    # Share of point features that training hides.
    dropout: float = 0.1
    # Samples with labels that class weights are measured on, and samples for the statistics of features.
    measured_samples: int = 128
    # What happens to a scan before it is learnt from.
    augmentation: Augmentation = field(default_factory=Augmentation)
    # How long and how fast.
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=250, batch=4, learning_rate=3e-3, muon=0.0))

    def network(self) -> NetworkConfig:
        """Return the widths of the network."""
        config = NetworkConfig.spvcnn(self.width, len(POINT_CLASSES))
        return replace(config, voxel_m=self.voxel_m, dropout=self.dropout)


def hold_lidar_course(course: LidarCourse, lessons: Lessons, room: Room) -> tuple[TeacherCard, Confusion]:
    """Train, measure and examine an SPVCNN; write weights and card into the room's folder and return its figures."""
    torch.manual_seed(room.seed)
    config = course.network()
    network = SPVCNN(config).to(room.device)
    epoch = itertools.islice(lessons.endless(0), lessons.epoch_samples)
    labelled = itertools.islice(filter(has_labels, epoch), course.measured_samples)
    weights = weights_of_classes(count_classes(labelled)).to(room.device)
    loop = course.loop
    if loop.precision == "auto":
        # Even where the hardware multiplies bfloat16 itself. CPUs take four times as long for products of so few
        # columns; and under any autocast torchsparse 1.4 convolves in float16, in which small gradients are lost.
        loop = replace(loop, precision="float32")
    trained = train(
        LidarTask(network, weights, course.augmentation),
        loop,
        lessons.endless,
        room.folder,
        device=room.device,
        identity=flatten(course) | room.identity,
        epoch_samples=lessons.epoch_samples,
        seed=room.seed,
        progress=lambda done, total: room.progress("train", done, total, "steps"),
    )
    raw = TeacherCard(
        name="spvcnn",
        kind="continuous",
        architecture=ARCHITECTURE,
        options=network_options(config),
        channels=config.feature_width,
        class_names=POINT_CLASSES,
        weights_sha256=write_weights(str(room.folder), network.state_dict()),
        data=lessons.data,
        versions=versions(),
    )
    teacher = SpvnasTeacher(raw, network)
    first = itertools.islice(lessons.endless(0), min(course.measured_samples, lessons.epoch_samples))
    statistics = measure_statistics(teacher, first)
    confusion = compare_with_labels(teacher, lessons.examination())
    figures = confusion.figures(POINT_CLASSES) | trained.figures()
    card = replace(raw, statistics=statistics, figures=figures)
    write_card(str(room.folder), card)
    return card, confusion
