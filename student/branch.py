"""Branches: one for each teacher, which imitates it, and one that is free."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from student.config import BranchSpec, StudentConfig
from student.layers import ConvNorm, norm_layer


class ImitationBranch(nn.Module):
    """Says what a teacher would say of each cell, and passes on what it has understood.

    What is compared with the teacher comes out of a linear layer: a ReLU there could never reach the half of the
    standardised targets that is negative (paper, section 3.1, with the teacher's statistics applied to the targets).
    """

    def __init__(self, spec: BranchSpec, inputs: int, config: StudentConfig) -> None:
        super().__init__()
        norm, kernel = config.norm, 3 if config.preset == "paper" else 1
        self.spec, self._feed = spec, config.feed
        self.look = ConvNorm(inputs, config.width, 3, norm=norm)
        self.say = nn.Conv2d(config.width, spec.channels, kernel, padding=kernel // 2)
        self.normalise = norm_layer("batch" if norm == "batch" else "group", spec.channels)
        passed = {
            "imitation": spec.channels,
            "hidden": config.width,
            "both": config.width + spec.channels,
        }[config.feed]
        self.pass_on = ConvNorm(passed, config.branch_width, kernel, norm=norm)

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return what it says, float32 [B, channels, h, w] (logits of classes), and [B, branch_width, h, w]."""
        hidden = self.look(view)
        said: Tensor = self.say(hidden)
        if self._feed == "hidden":
            return said.float(), self.pass_on(hidden)
        told = said.float().softmax(1).to(said.dtype) if self.spec.kind == "classes" else self.normalise(said)
        passed = told if self._feed == "imitation" else torch.cat([hidden, told], 1)
        return said.float(), self.pass_on(passed)


class FreeBranch(nn.Module):
    """Looks for what no teacher speaks of."""

    def __init__(self, inputs: int, config: StudentConfig) -> None:
        super().__init__()
        self.look = ConvNorm(inputs, config.branch_width, 3, norm=config.norm)

    def forward(self, view: Tensor) -> Tensor:
        """Return [B, branch_width, h, w]."""
        features: Tensor = self.look(view)
        return features
