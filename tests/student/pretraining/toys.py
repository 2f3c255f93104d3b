"""Images of colored rectangles, and what methods make of them in a few steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from student.pretraining import byol, byol_dense, byol_lidar
from student.pretraining.self_distillation import SelfDistillation
from student.pretraining.views import Crop, Views
from training.objective import Objective

SIDE = 32


def toy_views(count: int, step: int) -> Views:
    """Return views of always the same images, with noise of the step's own and as whole images."""
    fixed, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(step)
    images = torch.rand(count, 3, 1, 1, generator=fixed) * torch.ones(1, 1, SIDE, SIDE)
    for image in images:
        x, y = torch.randint(0, SIDE // 2, (2,), generator=fixed).tolist()
        image[:, y : y + SIDE // 2, x : x + SIDE // 2] = torch.rand(3, 1, 1, generator=fixed)
    first, second = ((4 * (images - 0.5) + 0.3 * torch.randn(images.shape, generator=noise)) for _ in range(2))
    whole = Crop(0, 0, SIDE, SIDE, False)
    return Views(first, second, [(whole, whole)] * count)


def plant_collapse(objective: SelfDistillation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gradient through to the targets, which are the online networks, and predict nothing."""
    objective.target_trunk = objective.trunk
    for name in [name for name, _ in objective.named_children()]:
        if name.startswith("target_") and name != "target_trunk":
            setattr(objective, name, getattr(objective, name.removeprefix("target_")))
        if "predictor" in name:
            setattr(objective, name, torch.nn.Identity())
    monkeypatch.setattr(torch, "no_grad", contextlib.nullcontext)
    monkeypatch.setattr(objective, "after_step", lambda _progress: None)

    def undetached(predicted: Tensor, expected: Tensor) -> Tensor:
        return (2 - 2 * torch.cosine_similarity(predicted, expected, dim=1)).mean()

    def undetached_cells(predicted: Tensor, expected: Tensor, same: Tensor) -> Tensor:
        cosines = torch.nn.functional.normalize(predicted, dim=2) @ torch.nn.functional.normalize(expected, dim=2).mT
        return (((2 - 2 * cosines) * same).sum((1, 2)) / same.sum((1, 2))).mean()

    for module in (byol, byol_dense, byol_lidar):
        monkeypatch.setattr(module, "byol_loss", undetached)
    monkeypatch.setattr(byol_dense, "dense_loss", undetached_cells)


def learn(
    objective: Objective,
    steps: int,
    rate: float = 3e-3,
    *,
    batches: Callable[[int, int], Any] = toy_views,
    count: int = 16,
) -> dict[str, float]:
    """Return the diagnostics after so many steps; batches: of so many images, at a step."""
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], rate)
    objective.train()
    for step in range(steps):
        batch = batches(count, step)
        losses = objective(batch, step / steps)
        optimizer.zero_grad()
        torch.stack([loss.weight * loss.value for loss in losses.values()]).sum().backward()
        optimizer.step()
        objective.after_step(step / steps)
    return {name: float(value) for name, value in objective.diagnostics(batch, 1.0).items()}
