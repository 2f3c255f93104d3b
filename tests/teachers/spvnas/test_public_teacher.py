"""A public checkpoint and its net.config make a teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from datalake.sample import Sample
from teachers.card import ChannelStatistics
from teachers.spvnas.teacher import SpvnasTeacher


def test_a_public_checkpoint_is_a_teacher_too(
    real_data: Path, tmp_path: Path, public_state: dict[str, Tensor], drive_samples: list[Sample]
) -> None:
    torch.save({"model": public_state}, tmp_path / "init")
    statistics = ChannelStatistics(mean=(0.0,) * 76, variance=(1.0,) * 76)
    teacher = SpvnasTeacher.load_public(
        str(tmp_path / "init"), str(real_data / "spvnas_65gmacs_net_config.json"), statistics=statistics
    )
    target = teacher.predict(drive_samples[:1], 16, 24)
    assert target.values.shape == (1, 76, 16, 24)
    assert target.valid.any()
    assert teacher.card.class_names[0] == "car"
    assert teacher.confusion(drive_samples[:1]).total > 1000
