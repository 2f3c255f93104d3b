"""The losses of a tiny student's first steps, recorded once: a refactoring must not change them.

Between two commits on one machine the curves are equal to the last bit: write both with

    python -m tests.training.test_golden_loss_curve > curve.json

in a worktree of each and compare. A commit that changes the curve on purpose records it again, alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from student.distillation.imitation import Imitation, ImitationConfig
from student.distillation.objective import DetectionObjective, LossWeights
from teachers.pool import LocalPool
from tests.student.students import COLORS, HEIGHT, SHADES, TAUGHT, WIDTH, ColorTeacher, build, cycled, samples
from tests.support.history import logged
from training.loop import LoopConfig, TrainInputs, train
from training.optimizer import OptimizerConfig
from training.run_dir import RunDir

pytestmark = pytest.mark.integration

GOLDEN = Path(__file__).parents[1] / "assets/golden_loss_curve.json"


def loss_curve(folder: str) -> list[dict[str, float]]:
    """Train a tiny student for 8 steps in float32 with AdamW on one thread; return what was logged of each step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        imitation = Imitation(ImitationConfig(), {"shades": torch.tensor([1.0, 2.0, 3.0])})
        objective = DetectionObjective(build(TAUGHT, seed=1), LossWeights(), {"imitation": imitation})
        pool = LocalPool(
            {"colors": ColorTeacher(COLORS, blind=2), "shades": ColorTeacher(SHADES)}, TAUGHT.grid(HEIGHT, WIDTH)
        )
        inputs = TrainInputs(
            batches=cycled(samples(6), 2, 2),
            labelled=2,
            unlabelled=2,
            teach=pool.teach,
            seed=1,
            fingerprint={},
        )
        config = LoopConfig(steps=8, warmup=0.25, precision="float32")
        optimizer = OptimizerConfig(learning_rate=2e-3, muon_lr_factor=0.0)
        train(objective, config, optimizer, inputs, RunDir(folder))
    finally:
        torch.set_num_threads(threads)
    return logged(folder)


def test_a_tiny_students_losses_are_those_that_were_recorded(tmp_path: Path) -> None:
    recorded = json.loads(GOLDEN.read_text())
    curve = loss_curve(str(tmp_path))
    assert len(curve) == len(recorded) == 8
    for found, expected in zip(curve, recorded, strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        json.dump(loss_curve(scratch), sys.stdout, indent=1)
        sys.stdout.write("\n")
