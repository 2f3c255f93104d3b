"""From the width of a student's pyramid to that of a detector teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from student.config import StudentConfig
from student.distillation.detector_teacher import DetectorTeacher


class PyramidAdapters(nn.ModuleDict):
    """A 1x1 convolution for each level of the student's pyramid and each teacher.

    They have no activation: the levels of a pyramid are signed.

    student: whose pyramid it is
    detectors: the teachers, by their names
    """

    def __init__(self, student: StudentConfig, detectors: Mapping[str, DetectorTeacher], *, bias: bool = True) -> None:
        super().__init__(
            {
                name: nn.ModuleList(
                    nn.Conv2d(student.width, teacher.config.width, 1, bias=bias) for _ in range(student.levels)
                )
                for name, teacher in detectors.items()
            }
        )

    def adapt(self, name: str, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return levels float32 [B, C, h, w] with as many channels as the teacher's, float32 under autocast as well."""
        adapters = self[name]
        assert isinstance(adapters, nn.ModuleList)
        # What is compared differs little, and bfloat16 would round the differences away.
        with torch.autocast(pyramid[0].device.type, enabled=False):
            return [adapter(level) for adapter, level in zip(adapters, pyramid, strict=True)]
