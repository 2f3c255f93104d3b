"""What linear probes are to read off a student's features: its frozen trunk and branches, and labels for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from datalake.sample import Sample, SampleKey
from datalake.sources.panoptic import PANOPTIC_CLASSES
from student.config import StudentConfig
from student.detector import Student
from student.evaluation.branches import recorded, recorded_trunk
from student.evaluation.image import classes_of_cells
from student.evaluation.probe import (
    ProbeRows,
    draw_rows,
    guess,
    joined,
    scores_of,
    tuned_probe,
)

# Of a frame so many cells are learned from.
_CELLS = 256
UNKNOWN = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbeTask:
    """What is to be read off features.

    of: each cell, or a frame as a whole, whose features are the means over its cells
    classes: how many; None: a positive number
    metric: by which it is judged; more is better of all but AbsRel
    labels: of a sample on a grid of (height, width) cells: int64 [h, w], UNKNOWN where there is none, or float32 [h, w]
        with NaN; of a frame [1, 1]
    """

    name: str
    of: Literal["cell", "frame"]
    classes: int | None
    metric: Literal["mIoU", "recall", "AbsRel"]
    labels: Callable[[Sample, tuple[int, int]], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """How well a probe reads frames that it was not trained on.

    share: of the frames it learned from; frames: how many these are
    rate: that was best on the tuning frames
    guessed: the metrics of saying one thing of everything
    """

    task: str
    metric: str
    share: float
    frames: int
    rate: float
    metrics: dict[str, float]
    guessed: dict[str, float]


def panoptic_task() -> ProbeTask:
    """Return the task of reading Waymo's panoptic class of the pixel in the middle of each cell."""
    return ProbeTask(name="panoptic", of="cell", classes=PANOPTIC_CLASSES, metric="mIoU", labels=_panoptic)


def depth_task() -> ProbeTask:
    """Return the task of reading the mean distance in metres of the lidar points in each cell."""
    return ProbeTask(name="depth", of="cell", classes=None, metric="AbsRel", labels=_depth_m)


def frame_task(name: str, values: Mapping[SampleKey, str | None]) -> ProbeTask:
    """Return the task of reading a word of each frame, such as its time of day; None: it has none."""
    words = sorted({value for value in values.values() if value is not None})
    number = {word: place for place, word in enumerate(words)}

    def labels(sample: Sample, grid: tuple[int, int]) -> Tensor:
        del grid
        word = values.get(sample.key)
        return torch.tensor([[UNKNOWN if word is None else number[word]]])

    return ProbeTask(name=name, of="frame", classes=len(words), metric="recall", labels=labels)


@torch.no_grad()
def frozen_features(student: Student, images: Tensor) -> Tensor:
    """Return what the trunk makes of images on the finest grid, and what each branch passes on, float32 [B, C, h, w].

    images: [B, 3, H, W], see `Student.features`
    """
    with recorded(student) as parts, recorded_trunk(student) as trunk:
        student.features(images.to(next(student.parameters()).device))
    return torch.cat([trunk[0].fine, *(of[0] for of in parts.values())], 1).float()


def random_student(config: StudentConfig, seed: int, device: torch.device) -> Student:
    """Return a student of this architecture that has learned nothing, in eval mode; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = Student(config)
    return student.to(device).eval()


def probe_frames(
    features: Callable[[Tensor], Tensor],
    tasks: Sequence[ProbeTask],
    learned: Iterable[Sequence[Sample]],
    tuned: Iterable[Sequence[Sample]],
    examined: Iterable[Sequence[Sample]],
    shares: Sequence[float],
    seed: int = 0,
    progress: Callable[[int], None] = lambda _images: None,
) -> list[ProbeResult]:
    """Return how well a linear layer reads each task off frozen features, from each share of the learned frames.

    features: of images uint8 [B, 3, H, W], float32 [B, C, h, w], on any device
    learned, tuned, examined: batches that probes learn from, choose their rate by, and are judged on. Smaller shares
        are part of larger ones, and the same frames whatever the features
    progress: called with the images seen

    A task for which learned, tuned or examined frames have no label is left out.
    """
    done = 0

    def tell(batches: Iterable[Sequence[Sample]]) -> Iterator[Sequence[Sample]]:
        nonlocal done
        for batch in batches:
            yield batch
            done += len(batch)
            progress(done)

    rows, count = _rows(features, tasks, tell(learned), seed)
    tuning, _ = _rows(features, tasks, tell(tuned), seed + 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    probes = []
    for task in tasks:
        if task.name not in rows or task.name not in tuning:
            continue
        for share in shares:
            some = rows[task.name].of_frames(order[: max(1, round(share * count))])
            if len(some.labels):
                probe, rate = tuned_probe(some, tuning[task.name], task.classes, seed)
                constant = guess(some, task.classes)
                frames = len(some.frame.unique())
                probes.append(
                    (task, share, frames, probe, rate, constant, scores_of(task.classes), scores_of(task.classes))
                )
    judged = set()
    for _, maps, labels in _labelled(features, tasks, tell(examined)):
        for task, _, _, probe, _, constant, scores, guessed in probes:
            known = _known(labels[task.name])
            if bool(known.any()):
                judged.add(task.name)
                truth = labels[task.name][known]
                scores.add(probe.predict(_of(task, maps)[None])[0][known], truth)
                guessed.add(torch.full_like(truth, constant), truth)
    return [
        ProbeResult(
            task=task.name,
            metric=task.metric,
            share=share,
            frames=frames,
            rate=rate,
            metrics=scores.metrics(),
            guessed=guessed.metrics(),
        )
        for task, share, frames, _, rate, _, scores, guessed in probes
        if task.name in judged
    ]


def _rows(
    features: Callable[[Tensor], Tensor],
    tasks: Sequence[ProbeTask],
    batches: Iterable[Sequence[Sample]],
    seed: int,
) -> tuple[dict[str, ProbeRows], int]:
    """Return by task what is learned from the frames, and how many frames there are."""
    rows: dict[str, list[ProbeRows]] = {}
    count = 0
    for number, maps, labels in _labelled(features, tasks, batches):
        count = number + 1
        for task in tasks:
            drawn = draw_rows(_of(task, maps), labels[task.name], number, _CELLS, seed + number, _known)
            if len(drawn.labels):
                rows.setdefault(task.name, []).append(drawn)
    return {name: joined(each) for name, each in rows.items()}, count


def _labelled(
    features: Callable[[Tensor], Tensor], tasks: Sequence[ProbeTask], batches: Iterable[Sequence[Sample]]
) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
    """Yield of each frame its number, its features [C, h, w] on the CPU, and its labels by task."""
    number = 0
    for batch in batches:
        of_batch = features(torch.stack([sample.image for sample in batch])).cpu()
        for maps, sample in zip(of_batch, batch, strict=True):
            grid = (maps.shape[1], maps.shape[2])
            yield number, maps, {task.name: task.labels(sample, grid) for task in tasks}
            number += 1


def _of(task: ProbeTask, maps: Tensor) -> Tensor:
    return maps if task.of == "cell" else maps.mean((1, 2), keepdim=True)


def _known(labels: Tensor) -> Tensor:
    return ~labels.isnan() if labels.is_floating_point() else labels != UNKNOWN


def _panoptic(sample: Sample, grid: tuple[int, int]) -> Tensor:
    if sample.panoptic is None:
        return torch.full(grid, UNKNOWN)
    middle = classes_of_cells(sample.panoptic, *grid)
    # The official 0 is UNDEFINED.
    return torch.where(middle > 0, middle, UNKNOWN)


def _depth_m(sample: Sample, grid: tuple[int, int]) -> Tensor:
    height, width = grid
    if sample.lidar is None:
        return torch.full(grid, torch.nan)
    across, down = sample.image.shape[2] / width, sample.image.shape[1] / height
    u, v = (sample.lidar.pixel_uv.double() / torch.tensor([[across], [down]])).floor().long()
    depth_m = sample.lidar.pixel_depth_m.double()
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (depth_m > 0)
    cell = v[inside] * width + u[inside]
    count = cell.bincount(minlength=height * width)
    total = cell.bincount(depth_m[inside], minlength=height * width)
    return torch.where(count > 0, total / count, torch.nan).float().view(grid)
