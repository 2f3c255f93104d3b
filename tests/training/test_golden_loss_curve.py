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

from student.training.checkpoint import HISTORY_FILE
from student.training.folder import RunFolder
from student.training.lesson import Lesson, LossWeights
from student.training.loop import LoopConfig, Plan, train
from teachers.classroom import LocalClassroom
from tests.student.students import (
    COLOURS,
    HEIGHT,
    SHADES,
    TAUGHT,
    WIDTH,
    ColourTeacher,
    build,
    round_and_round,
    samples,
)

GOLDEN = Path(__file__).parents[1] / "assets/golden_loss_curve.json"
# What a run logs that depends on when and how fast it is done.
_CLOCK = {"images_per_second", "wait/data", "wait/teachers"}


def loss_curve(folder: str) -> list[dict[str, float]]:
    """Train a tiny student for 8 steps in float32 with AdamW on one thread; return what was logged of each step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lesson = Lesson(build(TAUGHT, seed=1), LossWeights(), {"shades": torch.tensor([1.0, 2.0, 3.0])})
        plan = Plan(
            batches=round_and_round(samples(6), 2, 2),
            labelled=2,
            unlabelled=2,
            classroom=LocalClassroom(
                [ColourTeacher(COLOURS, blind=2), ColourTeacher(SHADES)], TAUGHT.grid(HEIGHT, WIDTH)
            ),
            seed=1,
            identity={},
        )
        config = LoopConfig(steps=8, learning_rate=2e-3, warmup=0.25, muon=0.0, precision="float32")
        train(lesson, config, plan, RunFolder(folder))
    finally:
        torch.set_num_threads(threads)
    content = RunFolder(folder).read(HISTORY_FILE)
    assert content is not None
    lines = [json.loads(line) for line in content.decode().splitlines()]
    return [{name: value for name, value in line.items() if name not in _CLOCK} for line in lines]


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
