"""From samples and targets to what one step works through, the same for every number of workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from datalake.sample import Sample
from student.training.augment import Augmentation, lit, mirrored_objects, mirrored_target
from student.training.lesson import Material
from teachers.target import Target

# Pictures per step that have a number of their own; far more than any step has.
_STEP = 1 << 20


def picture_generator(seed: int, step: int, place: int) -> torch.Generator:
    """Return the generator of the picture at `place` of the global batch of `step`.

    All chance in a step comes from these. Nothing of it has to be stored, and how the batch is cut among workers
    changes nothing.
    """
    number = step * _STEP + place
    # One number after the other would give generators that start alike.
    mixed = seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9
    # torch looks at the lowest 32 bits of a seed alone, and these know nothing of what is above them.
    mixed += (number >> 32) * 0x94D049BB133111EB
    return torch.Generator().manual_seed(mixed & (2**63 - 1))


def prepare(
    samples: Sequence[Sample],
    labelled: int,
    targets: Mapping[str, Target],
    generators: Sequence[torch.Generator],
    augmentation: Augmentation,
    device: torch.device,
) -> Material:
    """Return the material of samples, of which the first `labelled` show their labels.

    targets: of the samples, in their order, on the device
    generators: one for each sample
    """
    chance = torch.stack([torch.rand(3, generator=generator) for generator in generators])
    mirror = chance[:, 0] < augmentation.mirror
    light = 1 + augmentation.light * (2 * chance[:, 1:] - 1)
    pictures: Tensor = torch.stack([sample.image for sample in samples]).to(device).float() / 255
    pictures = torch.where(mirror[:, None, None, None].to(device), pictures.flip(-1), pictures)
    width = pictures.shape[-1]
    return Material(
        lit(pictures, light),
        [
            mirrored_objects(sample.objects, width) if turned else sample.objects
            for sample, turned in zip(samples[:labelled], mirror.tolist(), strict=False)
        ],
        {name: mirrored_target(target, mirror) for name, target in targets.items()},
        list(generators[:labelled]),
    )


def from_other_frames(targets: Mapping[str, Target]) -> dict[str, Target]:
    """Return the targets with each picture given those of the next one in the batch: nothing true can be learned.

    A control: what a student gains from these it does not gain from what its teachers know. In a batch with no
    more pictures than there are chunks the next one is of another place (`datalake.order`). Each worker turns its own.
    """

    def turn(values: Tensor) -> Tensor:
        return values.roll(-1, 0)

    return {
        name: replace(
            target,
            values=turn(target.values),
            valid=turn(target.valid),
            confidence=None if target.confidence is None else turn(target.confidence),
        )
        for name, target in targets.items()
    }
