"""Small students, images with rectangles to find, and teachers that anyone can imitate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from datalake.sample import Objects, Sample, SampleKey
from student.config import BranchSpec, StudentConfig
from student.detector import Student
from teachers.card import TeacherCard
from teachers.target import Target
from training.generators import Chance
from training.objective import Batch

HEIGHT, WIDTH = 64, 96
TINY = StudentConfig(
    stages=(8, 8, 16, 16, 16),
    blocks=(1, 1, 1, 1),
    width=16,
    branch_width=8,
    head_width=32,
    proposals=30,
    rpn_batch=32,
    roi_batch=16,
)
COLORS = BranchSpec(name="colors", kind="regression", channels=3)
SHADES = BranchSpec(name="shades", kind="classification", channels=3)
TAUGHT = replace(TINY, branches=(COLORS, SHADES))
# So bright is an object of each class; what is around it is dark.
_COLOR_OF = torch.tensor([[20, 20, 20], [230, 60, 60], [60, 230, 60], [60, 60, 230], [220, 220, 60]])


def build(config: StudentConfig = TINY, seed: int = 0) -> Student:
    """Return a student with seeded weights."""
    torch.manual_seed(seed)
    return Student(config)


def objects_of(*rows: tuple[float, float, float, float, int, float]) -> Objects:
    """Return objects of x0, y0, x1, y1, class and depth in metres."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Objects(table[:, :4].clone(), table[:, 4].long(), table[:, 5].clone())


def image(objects: Objects, number: int = 0) -> Tensor:
    """Return uint8 [3, H, W]: noise, and each object as a rectangle of its class' color."""
    noise = torch.Generator().manual_seed(number)
    image = torch.randint(0, 40, (3, HEIGHT, WIDTH), generator=noise)
    for (x0, y0, x1, y1), one in zip(objects.boxes.round().int().tolist(), objects.classes, strict=True):
        image[:, max(y0, 0) : y1, max(x0, 0) : x1] = _COLOR_OF[one][:, None, None]
    return image.to(torch.uint8)


def sample(number: int = 0, objects: Objects | None = None) -> Sample:
    """Return an image of its own for each number, with three objects of known depth where no others are given."""
    if objects is None:
        x, y = 7 * number % 40, 5 * number % 24
        objects = objects_of(
            (x, y, x + 20, y + 14, 1, 12.0 + number), (x + 30, y + 6, x + 38, y + 26, 2, 30.0), (2, 40, 22, 60, 4, 8.0)
        )
    return Sample(
        key=SampleKey(f"segment_{number}", number, "FRONT"),
        image=image(objects, number),
        objects=objects,
        lidar=None,
        panoptic=None,
        intrinsic=None,
        camera_to_vehicle=None,
    )


def samples(count: int) -> list[Sample]:
    """Return so many different ones."""
    return [sample(number) for number in range(count)]


def generators(count: int, step: int = 0) -> list[torch.Generator]:
    """Return one for each image, always the same."""
    return Chance(0, step, tuple(range(count))).generators()


@dataclass(frozen=True)
class ColorTeacher:
    """Says the mean color of each cell, or how bright it is as one of three classes; counts what it is asked.

    blind: rows of cells, from the top, that it has no answer for
    asked: how many images at a time
    """

    spec: BranchSpec = COLORS
    blind: int = 0
    asked: list[int] = field(default_factory=list)

    @property
    def card(self) -> TeacherCard:
        """A card that fits."""
        classes = self.spec.kind == "classification"
        return TeacherCard(
            name=self.spec.name,
            kind=self.spec.kind,
            architecture="colors",
            options={},
            channels=self.spec.channels,
            class_names=("dark", "gray", "bright")[: self.spec.channels] if classes else (),
            weights_sha256="c" * 64,
        )

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return what the images show."""
        self.asked.append(len(samples))
        images = torch.stack([sample.image for sample in samples]).float() / 255
        cells = adaptive_avg_pool2d(images, (height, width))
        values = (
            (4 * cells.mean(1, keepdim=True)).long().clamp(max=2)
            if self.spec.kind == "classification"
            else 4 * cells - 1
        )
        valid = torch.ones(len(samples), 1, height, width, dtype=torch.bool)
        valid[:, :, : self.blind] = False
        return Target(tuple(sample.key for sample in samples), values * valid, valid)


def targets_of(some: Sequence[Sample], config: StudentConfig = TAUGHT, blind: int = 2) -> dict[str, Target]:
    """Return what teachers of the student's branches say of the samples."""
    grid = config.grid(HEIGHT, WIDTH)
    return {spec.name: ColorTeacher(spec, blind).predict(some, *grid) for spec in config.branches}


def cycled(
    some: Sequence[Sample], labelled: int, unlabelled: int = 0, rank: int = 0, world_size: int = 1
) -> Callable[[int], Iterator[Batch]]:
    """Return a worker's batches from a step on: labelled samples are of the first half, the others of the other.

    Where there are none without labels, labelled ones are of both.
    """
    half = len(some) // 2 if unlabelled else len(some)

    def cut(pool: Sequence[Sample], count: int, step: int) -> list[Sample]:
        share = count // world_size
        first = step * count + rank * share
        return [pool[i % len(pool)] for i in range(first, first + share)]

    def from_step(step: int) -> Iterator[Batch]:
        while True:
            batch = cut(some[:half], labelled, step) + cut(some[half:] or some, unlabelled, step)
            step += 1
            yield Batch(batch, labelled // world_size, step)

    return from_step
