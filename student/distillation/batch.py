"""What a detector trains on in one step, the same for every number of workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from datalake.sample import Objects, Sample
from student.augmentation import Augmentation, lit, mirrored_objects, mirrored_target
from student.distillation.detector_teacher import DetectorTeacherOutput
from student.transfer import host_buffer
from teachers.target import Target
from training.generators import Chance


@dataclass(frozen=True, slots=True, eq=False)
class DetectionBatch:
    """The images of one step with what is known of them.

    images: uint8 or float32 within 0 … 1 [B, 3, H, W]
    labels: of the first of the images, auto-labels behind humans'; the others have none
    targets: what the map teachers say of all images, by the teachers' names
    generators: one for each labelled image: which anchors and proposals the detection losses look at
    chance: for all other random numbers, each kind under a purpose of its own
    detectors: what the detector teachers make of all images, by the teachers' names
    """

    images: Tensor
    labels: list[Objects]
    targets: dict[str, Target]
    generators: list[torch.Generator]
    chance: Chance
    detectors: Mapping[str, DetectorTeacherOutput] = field(default_factory=dict)


def collate(
    samples: Sequence[Sample],
    labelled: int,
    targets: Mapping[str, Target],
    chance: Chance,
    augmentation: Augmentation,
    device: torch.device,
) -> DetectionBatch:
    """Return the batch of samples, augmented, of which the first `labelled` show their labels, human or not.

    targets: of the samples, in their order, on the device
    """
    generators = chance.generators()
    drawn = torch.stack([torch.rand(3, generator=generator) for generator in generators])
    mirror = drawn[:, 0] < augmentation.mirror
    # All that is drawn goes to the device in one copy, the images in another, without waiting.
    packed = host_buffer(drawn.shape, drawn.dtype, device)
    packed[:, 0] = mirror
    packed[:, 1:] = 1 + augmentation.light * (2 * drawn[:, 1:] - 1)
    there = packed.to(device, non_blocking=True)
    mirror_there, light = there[:, 0] > 0, there[:, 1:]
    stacked = host_buffer((len(samples), *samples[0].image.shape), torch.uint8, device)
    torch.stack([sample.image for sample in samples], out=stacked)
    images: Tensor = stacked.to(device, non_blocking=True).float() / 255
    images = torch.where(mirror_there[:, None, None, None], images.flip(-1), images)
    width = images.shape[-1]
    return DetectionBatch(
        lit(images, light),
        [
            mirrored_objects(sample.objects, width) if mirrored else sample.objects
            for sample, mirrored in zip(samples[:labelled], mirror.tolist(), strict=False)
        ],
        {name: mirrored_target(target, mirror_there) for name, target in targets.items()},
        generators[:labelled],
        chance,
    )
