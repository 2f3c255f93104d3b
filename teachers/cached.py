"""A teacher's answers, kept in the lake: the same targets without the network.

A table `teacher_<name>` (`datalake.derived_table`) has a row for each image, in the precision in which targets travel
(`teachers.target.SparseTarget`). Of a classification teacher it has a class and a confidence of each cell, of a
regression teacher the values of the valid cells alone and where these are: with 24 channels some 30 kB an image.

The teacher predicts an image together with the others of its chunk. In another batch the last bit of float16 may be
rounded otherwise; the cache always has the same.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from datalake.chunk import Chunk
from datalake.commit import Commit
from datalake.derived_table import DerivedCommit, DerivedTable, Origin, open_derived_table, write_derived_segment
from datalake.lake import Lake
from datalake.sample import Sample, SampleKey
from datalake.sample_options import SampleOptions
from datalake.schema import IMAGE
from datalake.segment_files import SegmentFiles
from teachers.card import Kind, TeacherCard, TeacherError
from teachers.load import needs_points
from teachers.target import SparseTarget, Target
from teachers.teacher import Teacher

Key = TypeVar("Key")
Value = TypeVar("Value")

# Chunks kept in memory, and indices of segments: as many as a shuffled epoch mixes, twice over. On a grid of 64 x 96 a
# chunk of classes is 300 kB, one of 24 channels that are valid in a tenth of the cells as much.
_KEPT = 128
# Whose points the lidar teacher looks at.
_TOP = ("TOP",)


def _cells(value: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", value, nullable=False))


# Null where the teacher does not tell. The numbers are float16's; as float32 every reader knows them, and their empty
# low bits compress to nothing.
_CONFIDENCE = pa.field("confidence", _cells(pa.float32()))
_IMAGE = [
    *(IMAGE.field(name) for name in ("segment", "timestamp_us", "camera")),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
]
# Cells are counted row by row. Of classes there is every cell, those that are not valid with class 0; of numbers only
# the valid ones: `cell`, ascending, says which, and `value` has the channels of the first of them, then of the next.
SCHEMAS: dict[Kind, pa.Schema] = {
    "classification": pa.schema(
        [
            *_IMAGE,
            pa.field("class", _cells(pa.uint8()), nullable=False),
            pa.field("valid", _cells(pa.bool_()), nullable=False),
            _CONFIDENCE,
        ]
    ),
    "regression": pa.schema(
        [
            *_IMAGE,
            pa.field("channels", pa.int32(), nullable=False),
            pa.field("cell", _cells(pa.int32()), nullable=False),
            pa.field("value", _cells(pa.float32()), nullable=False),
            _CONFIDENCE,
        ]
    ),
}
_VALUES: dict[Kind, list[str]] = {
    "classification": ["class", "valid", "confidence"],
    "regression": ["cell", "value", "confidence"],
}


def table_name(name: str) -> str:
    """Return the table that a teacher cached as `name` has in a lake."""
    return f"teacher_{name}"


def origin_of(card: TeacherCard, name: str, grid: tuple[int, int], image_size: tuple[int, int]) -> Origin:
    """Return all that the predictions depend on, as the lake stores it.

    grid: height and width of the student's grid in cells
    image_size: width and height in pixels of the images that the teacher takes

    Raises LakeError for an impossible name.
    """
    settings: dict[str, Any] = {
        "architecture": card.architecture,
        "options": card.options,
        "class_names": card.class_names,
        "grid": grid,
        "image_size": image_size,
    }
    if card.kind == "regression":
        settings |= {"channels": card.channels, "statistics": card.statistics and asdict(card.statistics)}
    # As it will be read back: a tuple becomes a list.
    return Origin(table_name(name), card.weights_sha256, json.loads(json.dumps(settings)))


def cache_segment(
    lake: Lake, base: Commit, teacher: Teacher, origin: Origin, notify: Callable[[int], None] = lambda _: None
) -> DerivedCommit | None:
    """Run the teacher on every image of a segment and commit the predictions; None where that was done meanwhile.

    origin: of this teacher, from `origin_of`
    notify: called with the number of images of each chunk that is done

    Raises LakeError or TeacherError where an image or the teacher fails, or the segment is cached from another origin.
    """
    height, width = origin.settings["grid"]
    image_width, image_height = origin.settings["image_size"]
    size = (image_width, image_height)
    options = SampleOptions(image_size=size, points=needs_points([teacher.card]), lasers=_TOP)
    files, schema = SegmentFiles(lake, base), SCHEMAS[teacher.card.kind]

    def groups() -> Iterator[pa.RecordBatch]:
        for group, cameras in enumerate(base.chunks):
            if not cameras:
                yield pa.RecordBatch.from_pylist([], schema)
                continue
            chunk = Chunk(files, group, options)
            samples = [chunk.sample(row) for row in range(len(cameras))]
            yield _to_rows(teacher.predict(samples, height, width))
            notify(len(samples))

    try:
        return write_derived_segment(lake.store, base, origin, schema, groups())
    finally:
        files.close()


class CachedTeacher:
    """A teacher that reads its predictions. They are of the images as the lake has them, not of flipped ones."""

    def __init__(self, card: TeacherCard, table: DerivedTable) -> None:
        """Read the predictions of the teacher of `card`; raises TeacherError where another one made the table."""
        settings = table.origin.settings
        self.card, self._table = card, table
        self.grid: tuple[int, int] = tuple(settings["grid"])
        self.image_size: tuple[int, int] = tuple(settings["image_size"])
        expected = origin_of(card, "any", self.grid, self.image_size)
        if (table.origin.version, settings) != (expected.version, expected.settings):
            raise TeacherError(
                f"table {table.origin.table}: not made by the teacher {card.name} of this card (weights"
                f" {table.origin.version[:12]}…, here {card.weights_sha256[:12]}…, or other options);"
                " cache this teacher under another --name"
            )
        self._places: OrderedDict[str, dict[tuple[int, str], tuple[int, int]]] = OrderedDict()
        self._chunks: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()

    @staticmethod
    def open(lake: Lake, split: str, card: TeacherCard, name: str | None = None) -> CachedTeacher:
        """Return what is cached of the teacher of `card`, as its name or as `name`, for every segment of `split`.

        Raises LakeError where a segment is missing or was cached with other weights, TeacherError where another
        teacher made the table.
        """
        return CachedTeacher(card, open_derived_table(lake, table_name(name or card.name), split, card.weights_sha256))

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return the stored predictions, in the precision of targets between processes.

        Raises TeacherError for a sample that is not cached, another grid, or images of another size.
        """
        if (height, width) != self.grid:
            raise TeacherError(
                f"{self._table.origin.table}: cached on a grid of {self.grid[0]} x {self.grid[1]} cells, asked for"
                f" {height} x {width}; use that grid, or cache for this one under another --name"
            )
        keys = tuple(sample.key for sample in samples)
        rows = [self._row(sample) for sample in samples]
        confident = all(row["confidence"] is not None for row in rows)
        if self.card.kind == "classification":
            return _classes(keys, rows, height, width, confident)
        return _numbers(keys, rows, (len(rows), self.card.channels, height, width), confident)

    def _row(self, sample: Sample) -> dict[str, Any]:
        key, (height, width) = sample.key, sample.image.shape[1:]
        if (width, height) != self.image_size:
            raise TeacherError(
                f"{self._table.origin.table}: cached from images of {self.image_size[0]} x {self.image_size[1]}"
                f" pixels, got one of {width} x {height}; read the lake with that image_size, or cache for this one"
                " under another --name"
            )
        places = _kept(self._places, key.segment, lambda: self._index(key))
        place = places.get((key.timestamp_us, key.camera))
        if place is None:
            raise self._not_cached(key)
        group, row = place
        chunk = _kept(self._chunks, (key.segment, group), lambda: self._read(key.segment, group))
        return {name: rows[row] for name, rows in chunk.items()}

    def _read(self, segment: str, group: int) -> dict[str, Any]:
        """Return the cells of each image of a row group, by column."""
        rows = self._table.read(segment, group, _VALUES[self.card.kind])
        return {name: _from_lists(rows.column(name).combine_chunks()) for name in rows.column_names}

    def _index(self, key: SampleKey) -> dict[tuple[int, str], tuple[int, int]]:
        """Return the row group, and the row within it, of each image of the segment."""
        if key.segment not in self._table.segments:
            raise self._not_cached(key)
        keys = self._table.read(key.segment, columns=["timestamp_us", "camera"])
        places = ((g, row) for g, rows in enumerate(self._table.group_rows(key.segment)) for row in range(rows))
        images = zip(keys["timestamp_us"].to_pylist(), keys["camera"].to_pylist(), strict=True)
        return dict(zip(images, places, strict=True))

    def _not_cached(self, key: SampleKey) -> TeacherError:
        return TeacherError(
            f"{self._table.origin.table}: {key.segment} at {key.timestamp_us}, {key.camera}, is not cached;"
            " read the snapshot and split that the table was opened for"
        )


def _kept(kept: OrderedDict[Key, Value], key: Key, make: Callable[[], Value]) -> Value:
    """Return the value of `key`, made if it is not there; the one that nobody asked for the longest makes room."""
    if key not in kept:
        kept[key] = make()
        if len(kept) > _KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def _classes(
    keys: tuple[SampleKey, ...], rows: Sequence[dict[str, Any]], height: int, width: int, confident: bool
) -> Target:
    def stack(name: str) -> Tensor:
        cells = [row[name] for row in rows]
        return torch.from_numpy(np.stack(cells) if cells else np.zeros(0)).reshape(len(rows), 1, height, width)

    return Target(keys, stack("class").long(), stack("valid").bool(), stack("confidence") if confident else None)


def _numbers(
    keys: tuple[SampleKey, ...], rows: Sequence[dict[str, Any]], shape: tuple[int, int, int, int], confident: bool
) -> Target:
    _, channels, height, width = shape

    def join(name: str) -> NDArray[Any]:
        return np.concatenate([row[name] for row in rows]) if rows else np.zeros(0)

    starts = np.repeat(np.arange(len(rows)) * height * width, [len(row["cell"]) for row in rows])
    return SparseTarget(
        keys,
        shape,
        torch.from_numpy(join("value")).half().reshape(-1, channels),
        torch.from_numpy(join("cell") + starts).long(),
        torch.from_numpy(join("confidence")).half() if confident else None,
    ).to_dense()


def _to_rows(target: Target) -> pa.RecordBatch:
    """Return a row for each sample, after the same rounding that targets get on their way to a student."""
    batch, channels, height, width = target.values.shape
    sparse, schema = target.to_sparse().to("cpu"), SCHEMAS[target.kind]
    columns: dict[str, Any] = {
        "segment": [key.segment for key in target.keys],
        "timestamp_us": [key.timestamp_us for key in target.keys],
        "camera": [key.camera for key in target.keys],
        "height": [height] * batch,
        "width": [width] * batch,
    }
    if target.kind == "classification":
        told = sparse.to_dense()
        counts = [height * width] * batch
        lists = {"class": told.values.to(torch.uint8), "valid": told.valid, "confidence": told.confidence}
    else:
        columns["channels"] = [channels] * batch
        cells = torch.arange(batch * height * width) if sparse.index is None else sparse.index
        counts = torch.bincount(cells // (height * width), minlength=batch).tolist()
        confidence = None if sparse.confidence is None else sparse.confidence.float()
        lists = {"cell": (cells % (height * width)).int(), "value": sparse.values.float(), "confidence": confidence}
    for name, values in lists.items():
        kind = schema.field(name).type
        columns[name] = pa.nulls(batch, kind) if values is None else _to_lists(values, counts, kind)
    return pa.RecordBatch.from_pydict(columns, schema)


def _to_lists(values: Tensor, counts: Sequence[int], kind: pa.DataType) -> pa.ListArray:
    """Return the values, in their order, as a list for each of so many cells."""
    flat = values.flatten().numpy()
    offsets = np.concatenate([[0], np.cumsum(counts)]) * (len(flat) // max(1, sum(counts)))
    return pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(flat), type=kind)


def _from_lists(lists: pa.ListArray) -> list[NDArray[Any] | None]:
    """Return the rows as numpy arrays, and None where a row is null."""
    return [row.values.to_numpy(zero_copy_only=False) if row.is_valid else None for row in lists]
