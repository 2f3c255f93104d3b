"""Predictions of teachers, kept in a folder and read when an image is seen again.

    <folder>/<architecture>-<card>-<h>x<w>-<H>x<W>/<segment>/<timestamp_us>-<camera>.safetensors

For studies that train many students on the same frames. The prediction of one image takes 50 kB or so; for a whole data
set `teachers.cached`, or running the teacher every time, is cheaper.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch

from datalake.disk import room_in
from datalake.sample import Sample
from teachers.card import TeacherCard, TeacherError
from teachers.target import SparseTarget, Target
from teachers.teacher import Teacher

_SUFFIX = ".safetensors"


class RememberedTeacher:
    """A teacher that predicts an image once, and keeps the prediction in the precision of targets between processes.

    Predictions are of the images as the lake has them; several processes may share the folder. Samples whose points
    were not read can still be looked up.
    """

    def __init__(self, teacher: Teacher, folder: Path) -> None:
        self._teacher, self._folder = teacher, folder

    @property
    def card(self) -> TeacherCard:
        """Of the teacher that predicts."""
        return self._teacher.card

    def remembers(self, sample: Sample, height: int, width: int) -> bool:
        """Return whether the prediction of the sample is there."""
        return self._path(sample, height, width).exists()

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return the predictions of the samples on a grid of `height` x `width`; only new ones are computed."""
        paths = [self._path(sample, height, width) for sample in samples]
        new = [(sample, path) for sample, path in zip(samples, paths, strict=True) if not path.exists()]
        if new:
            answer = self._teacher.predict([sample for sample, _ in new], height, width)
            for place, (_, path) in enumerate(new):
                _write(path, _one(answer, place).to_sparse().to("cpu"))
        targets = [_read(path, sample) for path, sample in zip(paths, samples, strict=True)]
        told = all(target.confidence is not None for target in targets)
        return Target(
            tuple(sample.key for sample in samples),
            torch.cat([target.values for target in targets]),
            torch.cat([target.valid for target in targets]),
            torch.cat([target.confidence for target in targets if target.confidence is not None]) if told else None,
        )

    def _path(self, sample: Sample, height: int, width: int) -> Path:
        key = sample.key
        rows, columns = sample.image.shape[1:]
        answers = remembered_folder(self._folder, self.card, (height, width), (rows, columns))
        return answers / key.segment / f"{key.timestamp_us}-{key.camera}{_SUFFIX}"


def remembered_folder(folder: Path, card: TeacherCard, grid: tuple[int, int], image: tuple[int, int]) -> Path:
    """Return where a teacher's predictions on a grid (h, w), of images of (H, W) pixels, are kept."""
    # Options and statistics decide about the predictions as well as the weights do.
    settings = json.dumps([card.weights_sha256, card.options, asdict(card)["statistics"]], sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
    return folder / f"{card.architecture}-{digest}-{grid[0]}x{grid[1]}-{image[0]}x{image[1]}"


def remembered_count(folder: Path, cameras: Collection[str]) -> int:
    """Return how many predictions of images of these cameras are in a segment's folder."""
    if not folder.is_dir():
        return 0
    return sum(path.suffix == _SUFFIX and path.stem.partition("-")[2] in cameras for path in folder.iterdir())


def remembered_total(folder: Path) -> int:
    """Return how many predictions, of any teacher, are in the folder that they are kept in."""
    return sum(1 for _ in folder.glob(f"*/*/*{_SUFFIX}"))


def _one(target: Target, place: int) -> Target:
    chosen = slice(place, place + 1)
    confidence = None if target.confidence is None else target.confidence[chosen]
    return Target(target.keys[chosen], target.values[chosen], target.valid[chosen], confidence)


def _write(path: Path, target: SparseTarget) -> None:
    """Write the prediction of one image: a reader finds all of it or nothing."""
    tensors = {"shape": torch.tensor(target.shape), "values": target.values.contiguous()}
    if target.index is not None:
        tensors["index"] = target.index.int()
    if target.confidence is not None:
        tensors["confidence"] = target.confidence.contiguous()
    with room_in(str(path.parent)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".unfinished", delete=False) as file:
            file.write(safetensors.torch.save(tensors))
    os.replace(file.name, path)  # noqa: PTH105 - the name is a string


def _read(path: Path, sample: Sample) -> Target:
    try:
        tensors = safetensors.torch.load(path.read_bytes())
        batch, channels, height, width = tensors["shape"].tolist()
        index = tensors.get("index")
        return SparseTarget(
            (sample.key,),
            (batch, channels, height, width),
            tensors["values"],
            None if index is None else index.long(),
            tensors.get("confidence"),
        ).to_dense()
    except (safetensors.SafetensorError, LookupError, ValueError) as error:
        raise TeacherError(f"{path}: not a kept prediction: {error}; delete it") from error
