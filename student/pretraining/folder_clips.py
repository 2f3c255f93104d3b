"""Pairs of images of one clip, from a folder of clips instead of a lake."""

from __future__ import annotations

import hashlib
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from datalake.children import die_with_parent
from datalake.commit import LakeError
from datalake.order import epoch_order
from datalake.packed_batch import PackedBatch
from datalake.sample import Objects, Panoptic, Sample, SampleKey
from student.pretraining.clips import OF_OTHERS, Pairs, of_other_segments
from teachers.classes import CAMERA_CLASSES

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_MASK = "_mask"
# Modes of images whose values are numbers as they are.
_NUMBERED = frozenset({"1", "L", "P", "I", "I;16"})
# What masks show, as labels of a lake would have it: any object, and all else.
_OBJECT, _REST = CAMERA_CLASSES.index("CAR"), CAMERA_CLASSES.index("STATIC")


class FolderClips(Dataset[list[Sample]]):
    """Pairs of a folder's clips, batch by batch: B first images, then their B second ones, as of `ClipStream`.

    Each sub-folder is a clip; its images, JPEGs and PNGs, are in the order of their names, in which numbers count as
    numbers. `<name>_mask.png` beside an image has a value for each of its objects and 0 elsewhere. Batches follow from
    the files' names, the pairs and the seed alone.
    """

    def __init__(
        self, folder: str, pairs: Pairs, image_size: tuple[int, int], batch: int, *, seed: int = 0, masks: bool = False
    ) -> None:
        """List the clips; raises LakeError where there are too few pairs, or a mask is asked for and missing."""
        self.folder, self.pairs, self.image_size, self.batch, self.seed = Path(folder), pairs, image_size, batch, seed
        self.masks, self.threads = masks, 1
        clips = sorted(path for path in self.folder.iterdir() if path.is_dir()) if self.folder.is_dir() else []
        images = [sorted((path for path in clip.iterdir() if _is_image(path)), key=_by_numbers) for clip in clips]
        self.images = [path for clip in images for path in clip]
        clip_of = np.repeat(np.arange(len(clips)), [len(clip) for clip in images])
        if not self.images:
            raise LakeError(f"--clips {folder}: no sub-folder with images ({', '.join(sorted(_SUFFIXES))})")
        if masks and (missing := [path for path in self.images if not _mask_of(path).exists()]):
            raise LakeError(f"--clips {folder}: {len(missing)} images have no mask, e.g. {_mask_of(missing[0])}")
        has_next = np.append(clip_of[1:] == clip_of[:-1], False)
        self._first = np.flatnonzero(has_next) if pairs == "next" else np.arange(len(self.images))
        self._clip = clip_of
        self._sizes = np.bincount(clip_of[self._first], minlength=len(clips))
        self._steps = len(self._first) // batch
        # The pairs of an epoch, once they are known: its number, first and second images.
        self._known: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None
        if not self._steps:
            raise LakeError(f"--clips {folder}: {len(self._first)} pairs, fewer than one batch of {batch}")
        if pairs == "shuffled" and len(set(clip_of.tolist())) < 2:
            raise LakeError(f"--clips {folder}: one clip, and pairs of different ones are asked for")

    @property
    def sha256(self) -> str:
        """The checksum of the files' names and sizes, in their order."""
        digest = hashlib.sha256()
        for path in self.images:
            digest.update(f"{path.relative_to(self.folder).as_posix()} {path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def loader(self, start: int, workers: int = 0, threads: int = 1) -> DataLoader[list[Sample]]:
        """Return the batches from a step on, for ever.

        workers: processes that read ahead; 0: this one. threads: images that each process decodes at once
        """
        self.threads = threads
        return DataLoader(
            cast(Dataset[list[Sample]], self),
            batch_size=None,
            sampler=itertools.count(start),
            num_workers=workers,
            collate_fn=PackedBatch if workers else list,
            worker_init_fn=die_with_parent,
            multiprocessing_context="forkserver" if workers and torch.cuda.is_initialized() else None,
        )

    def __getitem__(self, step: int) -> list[Sample]:
        """Return the batch of a step. Raises LakeError where a file is no image."""
        numbers = self.numbers(step)
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self._sample, numbers.tolist()))

    def numbers(self, step: int) -> NDArray[np.int64]:
        """Return which images a step's batch has, int64 [B] or [2 B], numbered as they lie in the folder."""
        epoch, part = divmod(step, self._steps)
        if self._known is None or self._known[0] != epoch:
            self._known = (epoch, *self._pairs_of(epoch))
        _, first, second = self._known
        places = slice(part * self.batch, (part + 1) * self.batch)
        return first[places] if self.pairs == "same" else np.concatenate([first[places], second[places]])

    def _pairs_of(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and the second images of an epoch's pairs, int64 [N] each."""
        streams = int((self._sizes > 0).sum())
        first = self._first[epoch_order(self._sizes, streams, self.seed, epoch)]
        if self.pairs != "shuffled":
            return first, first + (self.pairs == "next")
        others = epoch_order(self._sizes, streams, self.seed + OF_OTHERS, epoch)
        return first, of_other_segments(first, others, self._clip)

    def _sample(self, number: int) -> Sample:
        path = self.images[number]
        try:
            with Image.open(path) as image:
                image.draft("RGB", self.image_size)
                pixels = np.asarray(image.convert("RGB").resize(self.image_size, Image.Resampling.BILINEAR))
            mask = self._mask(path) if self.masks else None
        except (UnidentifiedImageError, OSError) as error:
            raise LakeError(f"{path}: not an image that decodes: {error}") from error
        return Sample(
            key=SampleKey(path.parent.name, number, path.name),
            image=torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            objects=Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0)),
            lidar=None,
            panoptic=mask,
            intrinsic=None,
            camera_to_vehicle=None,
        )

    def _mask(self, path: Path) -> Panoptic:
        with Image.open(_mask_of(path)) as image:
            # Numbers of objects, not colors: a palette's index, and all 16 bits.
            plain = image if image.mode in _NUMBERED else image.convert("L")
            values = np.asarray(plain.resize(self.image_size, Image.Resampling.NEAREST)).astype(np.int32)
        instance = torch.from_numpy(values)
        return Panoptic(torch.where(instance > 0, _OBJECT, _REST).to(torch.uint8), instance)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.stem.endswith(_MASK)


def _mask_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}{_MASK}.png")


def _by_numbers(path: Path) -> list[tuple[int, int, str]]:
    """Return a key by which frame_9 comes before frame_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts if part]
