"""Branches: one for each teacher, which predicts its target, and one without a teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from student.config import BranchSpec, StudentConfig
from student.layers import ConvNorm, norm_layer


class ImitationBranch(nn.Module):
    """Predicts the target map of one teacher, and passes features on to the fusion.

    What is compared with the target comes out of a linear layer: a ReLU there could never reach the half of the
    standardized targets that is negative (paper, section 3.1, with the teacher's statistics applied to the targets).
    """

    def __init__(self, spec: BranchSpec, inputs: int, config: StudentConfig) -> None:
        super().__init__()
        norm, kernel = config.norm, config.branch_kernel
        self.spec, self._feed = spec, config.feed
        self.stem = ConvNorm(inputs, config.width, 3, norm=norm)
        self.predictor = nn.Conv2d(config.width, spec.channels, kernel, padding=kernel // 2)
        self.normalize = norm_layer("batch" if norm == "batch" else "group", spec.channels)
        passed = spec.channels + (config.width if config.feed == "both" else 0)
        self.projection = ConvNorm(passed, config.branch_width, kernel, norm=norm)

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions float32 [B, channels, h, w] (logits of classes) and features [B, branch_width, h, w]."""
        hidden = self.stem(view)
        branch_outputs: Tensor = self.predictor(hidden)
        predicted = (
            branch_outputs.float().softmax(1).to(branch_outputs.dtype)
            if self.spec.kind == "classification"
            else self.normalize(branch_outputs)
        )
        passed = predicted if self._feed == "imitation" else torch.cat([hidden, predicted], 1)
        return branch_outputs.float(), self.projection(passed)


class FreeBranch(nn.Module):
    """Features that no teacher supervises."""

    def __init__(self, inputs: int, config: StudentConfig) -> None:
        super().__init__()
        self.stem = ConvNorm(inputs, config.branch_width, 3, norm=config.norm)

    def forward(self, view: Tensor) -> Tensor:
        """Return [B, branch_width, h, w]."""
        features: Tensor = self.stem(view)
        return features
