"""Cards and folders of small teachers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from teachers.card import ChannelStatistics, TeacherCard, TrainingData, write_card, write_weights
from teachers.classes import LIDAR_CLASSES
from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.teacher import ARCHITECTURE, SpvnasTeacher, network_options
from tests.teachers.spvnas.clouds import small_network

CONFIG = NetworkConfig.spvcnn(0.125)


def lidar_card(statistics: ChannelStatistics | None = None) -> TeacherCard:
    """Return the card of `small_network`, whose 19 classes we call by Waymo's names."""
    return TeacherCard(
        name="lidar",
        kind="regression",
        architecture=ARCHITECTURE,
        options=network_options(CONFIG),
        channels=CONFIG.feature_width,
        class_names=LIDAR_CLASSES[1 : CONFIG.classes + 1],
        statistics=statistics,
        data=TrainingData(lake="/lake", snapshot=2, segments={"train": ("one", "two")}),
        weights_sha256="0" * 64,
    )


def lidar_teacher(statistics: ChannelStatistics | None = None) -> SpvnasTeacher:
    """Return a lidar teacher with seeded weights, the same at every call."""
    return SpvnasTeacher(lidar_card(statistics), small_network())


def lidar_folder(folder: Path, network: SPVCNN | None = None) -> str:
    """Write a lidar teacher with statistics into a folder; return its URL."""
    statistics = ChannelStatistics(mean=(0.5,) * CONFIG.feature_width, variance=(4.0,) * CONFIG.feature_width)
    sha256 = write_weights(str(folder), (network or small_network()).state_dict())
    write_card(str(folder), replace(lidar_card(statistics), weights_sha256=sha256))
    return str(folder)
