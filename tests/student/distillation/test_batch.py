"""What a detector trains on in one step."""

from __future__ import annotations

import torch

from student.augmentation import Augmentation
from student.distillation.batch import collate
from tests.student.students import WIDTH, samples, targets_of
from training.generators import Chance

CPU = torch.device("cpu")


def chance(count: int) -> Chance:
    return Chance(0, 0, tuple(range(count)))


STILL = Augmentation(mirror=0, light=0)


def test_without_augmentation_images_labels_and_targets_are_as_they_were() -> None:
    some = samples(3)
    targets = targets_of(some)
    batch = collate(some, 2, targets, chance(3), STILL, CPU)
    assert torch.allclose(batch.images, torch.stack([one.image for one in some]).float() / 255, atol=1e-6)
    assert [one.boxes.tolist() for one in batch.labels] == [one.objects.boxes.tolist() for one in some[:2]]
    assert len(batch.generators) == 2
    for name, target in targets.items():
        assert torch.equal(batch.targets[name].values, target.values)


def test_what_is_mirrored_is_mirrored_throughout() -> None:
    some = samples(8)
    plain = collate(some, 8, targets_of(some), chance(8), STILL, CPU)
    turned = collate(some, 8, targets_of(some), chance(8), Augmentation(mirror=0.5, light=0), CPU)
    flipped = []
    for place in range(8):
        # A mean over mirrored pixels may round otherwise.
        mirrored = torch.allclose(turned.images[place], plain.images[place].flip(-1), atol=1e-6)
        assert mirrored != torch.allclose(turned.images[place], plain.images[place], atol=1e-6)
        boxes = plain.labels[place].boxes
        if mirrored:
            boxes = torch.stack([WIDTH - boxes[:, 2], boxes[:, 1], WIDTH - boxes[:, 0], boxes[:, 3]], 1)
        assert torch.equal(turned.labels[place].boxes, boxes)
        for name, target in plain.targets.items():
            values = target.values[place].flip(-1) if mirrored else target.values[place]
            assert torch.equal(turned.targets[name].values[place], values)
        flipped.append(mirrored)
    assert 0 < sum(flipped) < 8


def test_a_images_augmentation_does_not_depend_on_the_others() -> None:
    some = samples(4)
    together = collate(some, 4, {}, chance(4), Augmentation(), CPU)
    alone = collate(some[2:], 2, {}, chance(4).subset([2, 3]), Augmentation(), CPU)
    assert torch.equal(together.images[2:], alone.images)
