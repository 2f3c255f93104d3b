"""What one step works through, and where its chance comes from."""

from __future__ import annotations

from dataclasses import replace

import torch

from student.augmentation import Augmentation
from student.training.material import from_other_frames, picture_generator, prepare
from tests.student.students import WIDTH, generators, samples, targets_of

CPU = torch.device("cpu")
STILL = Augmentation(mirror=0, light=0)


def drawn(seed: int, step: int, place: int) -> tuple[float, ...]:
    return tuple(torch.rand(4, generator=picture_generator(seed, step, place)).tolist())


def test_the_same_picture_draws_the_same_numbers() -> None:
    assert drawn(3, 12345, 7) == drawn(3, 12345, 7)


def test_every_seed_step_and_place_draws_its_own() -> None:
    # Of a seed torch looks at 32 bits: steps a power of two apart must differ in these.
    steps = [*range(40), *(2**power + offset for power in range(6, 24) for offset in (0, 1))]
    places = [(seed, step, place) for seed in range(3) for step in steps for place in (0, 1, 5, 63)]
    assert len({drawn(*where) for where in places}) == len(set(places))


def test_what_is_drawn_for_neighbours_is_not_alike() -> None:
    numbers = torch.tensor([drawn(0, step, place) for step in range(50) for place in range(10)])
    assert bool(((numbers.mean(0) - 0.5).abs() < 0.06).all())
    together = torch.corrcoef(torch.stack([numbers[:-1, 0], numbers[1:, 0]]))
    assert abs(float(together[0, 1])) < 0.15


def test_without_augmentation_pictures_labels_and_targets_are_as_they_were() -> None:
    some = samples(3)
    targets = targets_of(some)
    material = prepare(some, 2, targets, generators(3), STILL, CPU)
    assert torch.allclose(material.pictures, torch.stack([one.image for one in some]).float() / 255, atol=1e-6)
    assert [one.boxes.tolist() for one in material.labels] == [one.objects.boxes.tolist() for one in some[:2]]
    assert len(material.generators) == 2
    for name, target in targets.items():
        assert torch.equal(material.targets[name].values, target.values)


def test_what_is_mirrored_is_mirrored_throughout() -> None:
    some = samples(8)
    plain = prepare(some, 8, targets_of(some), generators(8), STILL, CPU)
    turned = prepare(some, 8, targets_of(some), generators(8), Augmentation(mirror=0.5, light=0), CPU)
    flipped = []
    for place in range(8):
        # A mean over mirrored pixels may round otherwise.
        mirrored = torch.allclose(turned.pictures[place], plain.pictures[place].flip(-1), atol=1e-6)
        assert mirrored != torch.allclose(turned.pictures[place], plain.pictures[place], atol=1e-6)
        boxes = plain.labels[place].boxes
        if mirrored:
            boxes = torch.stack([WIDTH - boxes[:, 2], boxes[:, 1], WIDTH - boxes[:, 0], boxes[:, 3]], 1)
        assert torch.equal(turned.labels[place].boxes, boxes)
        for name, target in plain.targets.items():
            values = target.values[place].flip(-1) if mirrored else target.values[place]
            assert torch.equal(turned.targets[name].values[place], values)
        flipped.append(mirrored)
    assert 0 < sum(flipped) < 8


def test_a_pictures_augmentation_does_not_depend_on_the_others() -> None:
    some = samples(4)
    together = prepare(some, 4, {}, generators(4), Augmentation(), CPU)
    alone = prepare(some[2:], 2, {}, generators(4)[2:], Augmentation(), CPU)
    assert torch.equal(together.pictures[2:], alone.pictures)


def test_shuffled_targets_are_real_ones_of_other_frames() -> None:
    some = samples(4)
    targets = targets_of(some)
    told = replace(targets["colours"], confidence=targets["colours"].valid.float())
    for target in (*targets.values(), told):
        shuffled = from_other_frames({"teacher": target})["teacher"]
        for place in range(4):
            other = (place + 1) % 4
            assert torch.equal(shuffled.values[place], target.values[other])
            assert torch.equal(shuffled.valid[place], target.valid[other])
            assert not torch.equal(shuffled.values[place], target.values[place])
    assert from_other_frames({}) == {}
