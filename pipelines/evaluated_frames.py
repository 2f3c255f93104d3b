"""The frames that a trained student is examined on: read as in its training, and never trained on."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from rich.console import Console

from datalake.commit import LakeError
from datalake.lake import Lake, open_lake
from datalake.sample import Sample, SampleKey
from pipelines.data import Frames
from pipelines.trainings import trainings_of
from student.config import StudentError
from training.checkpoint import Checkpoint


def frames_as_trained(
    run: str,
    checkpoint: Checkpoint,
    lake: Lake,
    split: str,
    points: bool,
    console: Console,
    asked: Mapping[str, Any] | None = None,
) -> Frames:
    """Return the frames of a split, read as in the training unless asked otherwise, which is printed.

    run: where the checkpoint is from, for errors
    asked: `cameras` and `image_size`; those that are missing or None are the training's

    Raises StudentError where the checkpoint does not say how the training read them.
    """
    chosen: dict[str, Any] = {"cameras": None, "image_size": None, **(asked or {})}
    for name, value in chosen.items():
        try:
            trained = ast.literal_eval(str(checkpoint.fingerprint[name]))
        except (KeyError, ValueError, SyntaxError) as error:
            raise StudentError(
                f"{run}: the checkpoint does not say with which {name} the student was trained; train it again"
            ) from error
        if value is None:
            chosen[name] = trained
        elif value != trained:
            console.print(
                f"{name.replace('_', ' ')} {_listed(value)}: the student was trained with {_listed(trained)}",
                soft_wrap=True,
                highlight=False,
            )
    return Frames(lake=lake, split=split, points=points, **chosen)


def check_unseen(run: str, checkpoint: Checkpoint, lake: Lake, examined: str, console: Console) -> None:
    """Raise LakeError where the student was trained on a segment of the split that it is to be examined on.

    Where it is another run's that was trained further, that run's segments count as well.

    run: where the checkpoint is from, for errors
    """
    trained: set[str] = set()
    for data in trainings_of(checkpoint.fingerprint):
        url, snapshot, split, condition = (data.get(name) for name in ("lake", "snapshot", "split", "where"))
        if not isinstance(url, str) or not isinstance(snapshot, int) or not isinstance(split, str):
            raise StudentError(
                f"{run}: the checkpoint does not name the lake, snapshot and split that it was trained on, so it is"
                " unknown whether it has seen these frames"
            )
        try:
            seen = open_lake(url, snapshot).where(None if condition is None else str(condition), split)
            trained |= {commit.segment for commit in seen.in_split(split)}
        except LakeError as error:
            # Runs are copied to other machines. What can be compared still is, and a line says so.
            known = split in lake.splits
            told = f"this lake's split {split} is compared" if known else "it is unknown whether it saw these frames"
            console.print(
                f"the lake of the training cannot be read, so {told}: {error}", soft_wrap=True, highlight=False
            )
            trained |= {commit.segment for commit in lake.in_split(split)} if known else set()
    if shared := sorted(trained & {commit.segment for commit in lake.in_split(examined)}):
        raise LakeError(
            f"the student was trained on {len(shared)} segments of split {examined}, e.g. {shared[0]}: metrics on"
            " frames that were trained on mean nothing; name another split"
        )


def drawn_batches(
    frames: Frames, batch: int, samples: int | None, *, panoptic: bool = False
) -> tuple[Iterable[Sequence[Sample]], int]:
    """Return batches of all samples, or of `samples` from everywhere in the split, and how many samples these are."""
    in_order = frames.stream(batch, shuffle=False, panoptic=panoptic)
    if samples is None or samples >= in_order.epoch_samples:
        return in_order.loader(), in_order.epoch_samples
    # One by one: an epoch in a random order ends with its last whole batch.
    return _grouped(islice(iter(frames.stream(1, shuffle=True, panoptic=panoptic)), samples), batch), samples


def words_of_images(lake: Lake, split: str, column: str) -> dict[SampleKey, str | None]:
    """Return a column of text of each image of a split, such as `time_of_day`; None where it has none."""
    rows = lake.images(["segment", "timestamp_us", "camera", column], split)
    values = (rows.column(name).to_pylist() for name in ("segment", "timestamp_us", "camera", column))
    return {SampleKey(segment, time, camera): word for segment, time, camera, word in zip(*values, strict=True)}


def _grouped(samples: Iterator[Sample], batch: int) -> Iterator[list[Sample]]:
    while group := list(islice(samples, batch)):
        yield group


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
