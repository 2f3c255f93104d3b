"""A student learns on a GPU as on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datalake.sample import Sample
from student.config import StudentConfig
from teachers.target import Target
from tests.support.device_checks import (
    bfloat16_step,
    exported_program,
    loss_curve,
    repeated_step,
    resumed_training,
    student_step,
)

pytestmark = pytest.mark.integration


def test_losses_and_gradients_of_a_step_are_the_cpus(
    config: StudentConfig, samples: list[Sample], targets: dict[str, Target], device: torch.device
) -> None:
    for check in student_step(config, samples, targets, device):
        assert check.passed, check


def test_bfloat16_changes_losses_by_rounding_only(
    config: StudentConfig, samples: list[Sample], targets: dict[str, Target], device: torch.device
) -> None:
    for check in bfloat16_step(config, samples, targets, device):
        assert check.passed, check


def test_the_same_step_gives_the_same_gradient_up_to_rounding(
    config: StudentConfig, samples: list[Sample], targets: dict[str, Target], device: torch.device
) -> None:
    for check in repeated_step(config, samples, targets, device):
        assert check.passed, check


def test_a_short_training_goes_as_on_a_cpu(
    config: StudentConfig, samples: list[Sample], device: torch.device, tmp_path: Path
) -> None:
    for check in loss_curve(config, samples, device, tmp_path, muon=0.0, steps=20):
        assert check.passed, check


def test_a_training_goes_on_from_its_checkpoint(
    config: StudentConfig, samples: list[Sample], device: torch.device, tmp_path: Path
) -> None:
    for check in resumed_training(config, samples, device, tmp_path, steps=8):
        assert check.passed, check


def test_an_exported_program_runs_there(
    config: StudentConfig, samples: list[Sample], device: torch.device, tmp_path: Path
) -> None:
    for check in exported_program(config, samples, device, tmp_path, steps=30):
        assert check.passed, check
