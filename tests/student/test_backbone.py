"""The backbone's features under mixed precision."""

from __future__ import annotations

import torch

from student.config import StudentConfig
from student.detector import Student


def test_features_and_anchors_are_float32_under_bfloat16_autocast() -> None:
    student = Student(StudentConfig(stages=(8, 8, 16, 16, 16), blocks=(1, 1, 1, 1), width=16, branch_width=8)).eval()
    with torch.autocast("cpu", torch.bfloat16):
        features = student.features(torch.zeros(1, 3, 64, 96))
    assert {level.dtype for level in features.pyramid} == {torch.float32}
