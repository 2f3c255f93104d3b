"""Images with objects and detections, for tests of metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from datalake.sample import Objects
from student.detections import Detections

VEHICLE, PEDESTRIAN, SIGN, CYCLIST = 1, 2, 3, 4

Box = tuple[float, float, float, float]
# Of other width than height and of other x than y: whoever mixes these up finds nothing.
CAR: Box = (10, 100, 50, 120)
VAN: Box = (200, 30, 260, 60)
MAN: Box = (300, 150, 310, 180)


def found(*rows: tuple[Box, int, float] | tuple[Box, int, float, float]) -> Detections:
    """Return detections of box, class, score and, 10 m if it is not given, distance."""
    return Detections(
        boxes=torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4),
        classes=torch.tensor([row[1] for row in rows], dtype=torch.int64),
        scores=torch.tensor([row[2] for row in rows], dtype=torch.float32),
        depth_m=torch.tensor([row[3] if len(row) == 4 else 10.0 for row in rows], dtype=torch.float32),
    )


def there(*rows: tuple[Box, int] | tuple[Box, int, float]) -> Objects:
    """Return objects of box, class and, NaN if it is not given, distance."""
    return Objects(
        boxes=torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4),
        classes=torch.tensor([row[1] for row in rows], dtype=torch.int64),
        depth_m=torch.tensor([row[2] if len(row) == 3 else math.nan for row in rows], dtype=torch.float32),
    )


def moved(box: Box, right: float = 0, down: float = 0) -> Box:
    """Return the box at another place."""
    return box[0] + right, box[1] + down, box[2] + right, box[3] + down


def random_objects(random: torch.Generator, count: int) -> Objects:
    """Return objects of all classes, 8 to 68 pixels wide, half as high; every fifth has no distance."""
    corners = torch.rand(count, 2, generator=random) * torch.tensor([300.0, 200.0])
    sides = (8 + 60 * torch.rand(count, 1, generator=random)) * torch.tensor([1.0, 0.5])
    depth = 2 + 70 * torch.rand(count, generator=random)
    return Objects(
        boxes=torch.cat([corners, corners + sides], 1),
        classes=torch.randint(1, 5, (count,), generator=random),
        depth_m=depth.where(torch.rand(count, generator=random) > 0.2, torch.nan),
    )


def random_image(random: torch.Generator) -> tuple[Detections, Objects]:
    """Return up to 12 objects, each found up to three times more or less well, and a few that are not there."""
    objects = random_objects(random, int(torch.randint(0, 13, (), generator=random)))
    ghosts = random_objects(random, int(torch.randint(0, 5, (), generator=random)))
    times = torch.randint(0, 4, (len(objects.boxes),), generator=random)
    seen = torch.arange(len(times)).repeat_interleave(times)
    boxes = objects.boxes[seen]
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = boxes + 0.12 * sides * torch.randn(len(seen), 4, generator=random)
    boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, 2:].maximum(boxes[:, :2])], 1)
    boxes = torch.cat([boxes, ghosts.boxes])
    # Now and then of a wrong class.
    classes = objects.classes[seen]
    classes = classes.where(torch.rand(len(seen), generator=random) > 0.1, classes % 4 + 1)
    classes = torch.cat([classes, ghosts.classes])
    scores = torch.rand(len(boxes), generator=random)
    depth = torch.cat([objects.depth_m[seen], ghosts.depth_m]).nan_to_num(nan=30)
    depth = depth * (0.7 + 0.6 * torch.rand(len(boxes), generator=random))
    order = scores.argsort(descending=True)
    return Detections(boxes[order], classes[order], scores[order], depth[order]), objects


def random_images(seed: int, count: int) -> Sequence[tuple[Detections, Objects]]:
    """Return images as above, always the same for a seed."""
    random = torch.Generator().manual_seed(seed)
    return [random_image(random) for _ in range(count)]


def perfect(objects: Objects) -> Detections:
    """Return what a student that makes no mistake finds; scores fall, and a distance not known is called 1 m."""
    count = len(objects.boxes)
    return Detections(
        objects.boxes, objects.classes, torch.linspace(0.9, 0.5, count), objects.depth_m.nan_to_num(nan=1.0)
    )
