"""Controls of a claim that distillation helps: targets that do not belong to their image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from datalake.sample import Sample
from student.distillation.detector_teacher import DetectorTeacherOutput
from teachers.target import Target
from training.generators import Chance

Targets = Literal["real", "shuffled", "random"]


def shuffled_targets(targets: Mapping[str, Target]) -> dict[str, Target]:
    """Return the targets with each image given those of the next one in the batch.

    What a student gains from these it does not gain from its teachers' knowledge of the image. In a batch with no more
    images than there are chunks the next one is of another place (`datalake.order`). Each worker rolls its own.
    """

    def roll(values: Tensor) -> Tensor:
        return values.roll(-1, 0)

    return {
        name: replace(
            target,
            values=roll(target.values),
            valid=roll(target.valid),
            confidence=None if target.confidence is None else roll(target.confidence),
        )
        for name, target in targets.items()
    }


def shuffled_labels(samples: Sequence[Sample], first: int) -> list[Sample]:
    """Return the samples, each from `first` on with the labels of the next one of these, as `shuffled_targets`."""
    others = samples[first:]
    following = [*others[1:], *others[:1]]
    given = [replace(one, objects=other.objects) for one, other in zip(others, following, strict=True)]
    return [*samples[:first], *given]


def random_targets(targets: Mapping[str, Target], channels: Mapping[str, int], chance: Chance) -> dict[str, Target]:
    """Return the targets with their values drawn anew where they are valid: standard normal numbers, or any class.

    channels: of each teacher of classes, how many there are
    """
    drawn = {}
    for name, target in targets.items():
        shape = target.values.shape[1:]
        generators = chance.generators(f"random targets of {name}")
        if target.kind == "classification":
            rows = [torch.randint(channels[name], shape, generator=generator) for generator in generators]
        else:
            rows = [torch.randn(shape, generator=generator) for generator in generators]
        values = torch.stack(rows).to(target.values.device)
        drawn[name] = replace(target, values=values.where(target.valid, torch.zeros_like(values)))
    return drawn


def shuffled_features(outputs: Mapping[str, DetectorTeacherOutput]) -> dict[str, DetectorTeacherOutput]:
    """Return the detector teachers' outputs with each image given those of the next one, as `shuffled_targets` does."""
    return {
        name: output.with_pyramid(tuple(level.roll(-1, 0) for level in output.pyramid))
        for name, output in outputs.items()
    }


def random_features(outputs: Mapping[str, DetectorTeacherOutput], chance: Chance) -> dict[str, DetectorTeacherOutput]:
    """Return the detector teachers' outputs with normal numbers for features.

    Each channel of a level keeps its mean and deviation over the worker's images, so that losses are as large as with
    real features.
    """
    drawn = {}
    for name, output in outputs.items():
        generators = chance.generators(f"random features of {name}")
        levels = []
        for level in output.pyramid:
            rows = [torch.randn(level.shape[1:], generator=generator) for generator in generators]
            deviation, mean = torch.std_mean(level, (0, 2, 3), correction=0, keepdim=True)
            levels.append(mean + deviation * torch.stack(rows).to(level.device))
        drawn[name] = output.with_pyramid(tuple(levels))
    return drawn
