"""From images to a feature pyramid, by way of the branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from student.branch import FreeBranch, ImitationBranch
from student.config import StudentConfig
from student.layers import ConvNorm, StandardizedConv
from student.trunk import build_trunk

# The branch without a teacher.
FREE = "free"


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What the backbone makes of B images.

    pyramid: float32 [B, width, h, w] on the imitation's grid, and further levels at half the resolution each
    branch_outputs: what each branch predicts of its teacher's target, float32 [B, channels, h, w]; logits of classes
    """

    pyramid: tuple[Tensor, ...]
    branch_outputs: dict[str, Tensor]


class Backbone(nn.Module):
    """Trunk, branches, fusion and pyramid (paper, figure 1).

    Every level of the pyramid is computed from the fused map, and so from all branches. Where the trunk has a map of
    the same resolution, it is added by a lateral connection.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        norm, width = config.norm, config.width
        self.trunk = build_trunk(config)
        inputs = self.trunk.width
        self.branches = nn.ModuleDict({spec.name: ImitationBranch(spec, inputs, config) for spec in config.branches})
        self.free = FreeBranch(inputs, config)
        self.fuse = ConvNorm(config.branch_width * (1 + len(config.branches)), width, 1, norm=norm)
        levels = config.levels - 1
        self.downsample = nn.ModuleList(ConvNorm(width, width, 3, norm=norm, stride=2) for _ in range(levels))
        lateral_widths = self.trunk.coarse_widths[:levels]
        self.lateral = nn.ModuleList(ConvNorm(coarse, width, 1, norm=norm, relu=False) for coarse in lateral_widths)

    def forward(self, images: Tensor) -> Features:
        """Return the features of images float32 [B, 3, H, W], normalized."""
        view = self.trunk(images)
        branch_outputs, parts = {}, [self.free(view.fine)]
        for name, branch in self.branches.items():
            branch_outputs[name], part = branch(view.fine)
            parts.append(part)
        return Features(self.pyramid(parts, view.coarse), branch_outputs)

    @torch.no_grad()
    def selection(self) -> dict[str, Tensor]:
        """Return each branch's share of the fusion: `<branch>/weight`, and `<branch>/gradient` where there is one.

        The squared norm of the branch's columns over that of all columns: of the weights by which features are
        multiplied, and of the gradient of those that are trained.
        """
        layer = self.fuse[0]
        assert isinstance(layer, nn.Conv2d)
        matrices = {"weight": layer.standardized() if isinstance(layer, StandardizedConv) else layer.weight}
        if layer.weight.grad is not None:
            matrices["gradient"] = layer.weight.grad
        names = [FREE, *self.branches]
        shares = {}
        for what, matrix in matrices.items():
            of_branches = matrix.float().square().sum((0, 2, 3)).view(len(names), -1).sum(1)
            for name, value in zip(names, of_branches / of_branches.sum().clamp(min=1e-30), strict=True):
                shares[f"{name}/{what}"] = value
        return shares

    def pyramid(self, parts: Sequence[Tensor], coarse: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the levels that are made of what the free branch and the others pass on, and of the trunk's maps.

        parts: [B, branch_width, h, w] each; coarse: as `TrunkFeatures` has them
        """
        levels = [self.fuse(torch.cat(list(parts), 1))]
        for number, downsample in enumerate(self.downsample):
            level = downsample(levels[-1])
            if number < len(self.lateral):
                level = level + self.lateral[number](coarse[number])
            levels.append(level)
        # torchvision makes anchors in the format of the features, and bfloat16 resolves the columns of an image to two
        # pixels only.
        return tuple(level.float() for level in levels)
