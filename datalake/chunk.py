"""One row group of every table, read together and cut into samples."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from datalake.commit import LakeError
from datalake.sample import Lidar, Objects, Panoptic, Sample, SampleKey, naming
from datalake.segment_files import SegmentFiles
from datalake.sources.frame import OBJECT_TYPES
from datalake.sources.panoptic import PanopticError, decode_panoptic

_COLUMNS = {
    "image": [
        *("timestamp_us", "camera", "jpeg", "width", "height"),
        *("intrinsic", "camera_to_vehicle", "vehicle_to_world"),
    ],
    "label": ["timestamp_us", "camera", "type", "x0", "y0", "x1", "y1", "depth_m", "difficulty"],
    "point": ["timestamp_us", "x_m", "y_m", "z_m", "intensity", "laser", "semantic_class"],
    "depth": ["u", "v", "depth_m", "point"],
}
_PANOPTIC = ["panoptic", "panoptic_divisor"]


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """What a sample holds.

    image_size: (width, height) to resize everything to, or None for the size of the record
    points: read the lidar tables
    panoptic: read and decode the panoptic labels
    lasers: numbers of the lasers whose points are kept; empty: all
    """

    image_size: tuple[int, int] | None
    points: bool
    panoptic: bool
    lasers: frozenset[int] = frozenset()

    @property
    def columns(self) -> dict[str, list[str]]:
        """The columns to read, by table."""
        columns = {"image": _COLUMNS["image"] + (_PANOPTIC if self.panoptic else []), "label": _COLUMNS["label"]}
        if self.points:
            columns |= {table: _COLUMNS[table] for table in ("point", "depth")}
        return columns


@dataclass(frozen=True, slots=True)
class _Cloud:
    """One frame's points, as `Lidar` has them: made once, shared by the samples of all its cameras.

    row: int32 [P], where each of the record's points is now, -1 for one that was left out; None where all are kept
    """

    points: torch.Tensor
    laser: torch.Tensor
    semantic_class: torch.Tensor | None
    row: NDArray[np.int32] | None


class Chunk:
    """The rows of one chunk, in memory; `sample` makes one image of it into tensors.

    All that the images share is made here, once, in whatever thread reads the chunk.
    """

    def __init__(self, files: SegmentFiles, group: int, options: SampleOptions) -> None:
        self._options = options
        self._segment, self._name = files.commit.segment, files.commit.file_name("image")
        tables = files.read(group, options.columns)
        self._image, label = tables["image"], tables["label"]
        self._camera: list[str] = self._image["camera"].to_pylist()
        self._intrinsic = _rows(self._image["intrinsic"])
        self._camera_to_vehicle = _rows(self._image["camera_to_vehicle"])
        self._vehicle_to_world = _rows(self._image["vehicle_to_world"])
        self._boxes = np.stack([label[name] for name in ("x0", "y0", "x1", "y1")], axis=1)
        self._classes = np.array([OBJECT_TYPES.index(name) for name in label["type"].to_pylist()], np.int64)
        self._difficulty = label["difficulty"]
        self._depth_m = label["depth_m"].astype(np.float32, copy=False)
        self._labels: dict[tuple[int, str], list[int]] = {}
        for row, key in enumerate(zip(label["timestamp_us"].tolist(), label["camera"].to_pylist(), strict=True)):
            self._labels.setdefault(key, []).append(row)
        if options.points:
            self._clouds = _read_clouds(tables["point"], options.lasers)
            self._seen = {name: _rows(lists) for name, lists in tables["depth"].items()}

    def sample(self, row: int) -> Sample:
        """Return the sample of image row `row` of this chunk.

        Raises LakeError where its JPEG or its panoptic label does not decode; whatever else is raised names the sample.
        """
        key = SampleKey(self._segment, int(self._image["timestamp_us"][row]), self._camera[row])
        with naming([key]):
            return self._sample(row, key)

    def _sample(self, row: int, key: SampleKey) -> Sample:
        timestamp_us, camera = key.timestamp_us, key.camera
        width, height = int(self._image["width"][row]), int(self._image["height"][row])
        size = self._options.image_size or (width, height)
        scale = size[0] / width, size[1] / height
        intrinsic = self._intrinsic[row]
        return Sample(
            key=key,
            image=self._decode(row, key, size),
            objects=self._objects(timestamp_us, camera, scale, size),
            lidar=self._lidar(row, timestamp_us, scale) if self._options.points else None,
            panoptic=self._panoptic(row, key, size) if self._options.panoptic else None,
            intrinsic=None if intrinsic is None else torch.from_numpy(intrinsic * [*scale, *scale, 1, 1, 1, 1, 1]),
            camera_to_vehicle=_transform(self._camera_to_vehicle[row]),
            record_size=(width, height),
            vehicle_to_world=_transform(self._vehicle_to_world[row]),
        )

    def _decode(self, row: int, key: SampleKey, size: tuple[int, int]) -> torch.Tensor:
        buffer = self._image["jpeg"][row].as_buffer()
        try:
            if self._options.image_size is None:
                return decode_jpeg(_tensor(np.frombuffer(buffer, np.uint8)), ImageReadMode.RGB)
            with Image.open(io.BytesIO(buffer), formats=("JPEG",)) as image:
                # The decoder itself halves the image while it stays larger than needed: fewer pixels to resize.
                # It rounds the sides up; the original's own end within them is what it returns.
                drafted = image.draft("RGB", size)
                resized = image.convert("RGB").resize(
                    size, Image.Resampling.BILINEAR, box=None if drafted is None else drafted[1]
                )
                return torch.from_numpy(np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1)))
        except (RuntimeError, OSError) as error:
            raise LakeError(
                f"{self._name}: the JPEG of {key.camera} at {key.timestamp_us} does not decode: {error};"
                " exclude the segment, or build it again from an intact source"
            ) from error

    def _objects(self, timestamp_us: int, camera: str, scale: tuple[float, float], size: tuple[int, int]) -> Objects:
        mine = np.array(self._labels.get((timestamp_us, camera), ()), np.intp)
        # Lakes of version 0.1 have boxes that reach beyond the image, and some that lie there.
        boxes = np.clip(self._boxes[mine] * np.array(scale * 2, np.float32), 0, np.array(size * 2, np.float32))
        seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
        mine = mine[seen]
        return Objects(
            boxes=torch.from_numpy(boxes[seen]),
            classes=torch.from_numpy(self._classes[mine]),
            depth_m=torch.from_numpy(self._depth_m[mine]),
            difficulty=torch.from_numpy(self._difficulty[mine]),
        )

    def _lidar(self, row: int, timestamp_us: int, scale: tuple[float, float]) -> Lidar:
        cloud = self._clouds[timestamp_us]
        seen = {name: rows[row] for name, rows in self._seen.items()}
        if cloud.row is not None:
            moved = cloud.row[seen["point"]]
            seen = {name: values[moved >= 0] for name, values in (seen | {"point": moved}).items()}
        # A projection names a pixel; its center is half a pixel further, and that is what scales.
        axes = zip((seen["u"], seen["v"]), scale, strict=True)
        uv = [(pixel + np.float32(0.5)) * np.float32(factor) for pixel, factor in axes]
        return Lidar(
            points=cloud.points,
            laser=cloud.laser,
            semantic_class=cloud.semantic_class,
            pixel_point=_tensor(seen["point"]),
            pixel_uv=torch.from_numpy(np.stack(uv)),
            pixel_depth_m=_tensor(seen["depth_m"]),
        )

    def _panoptic(self, row: int, key: SampleKey, size: tuple[int, int]) -> Panoptic | None:
        if not self._image["panoptic"][row].is_valid:
            return None
        png, divisor = self._image["panoptic"][row].as_buffer(), int(self._image["panoptic_divisor"][row])
        try:
            semantic_class, instance = decode_panoptic(memoryview(png), divisor, size)
        except PanopticError as error:
            raise LakeError(
                f"{self._name}: the panoptic label of {key.camera} at {key.timestamp_us} cannot be used: {error};"
                " exclude the segment, or build it again, which leaves such labels out"
            ) from error
        return Panoptic(torch.from_numpy(semantic_class), torch.from_numpy(instance))


def _read_clouds(point: dict[str, Any], lasers: frozenset[int]) -> dict[int, _Cloud]:
    """Return the points of each frame of the chunk, by its time; of these lasers alone, if any are named."""
    columns = {name: _rows(point[name]) for name in _COLUMNS["point"] if name != "timestamp_us"}
    clouds = {}
    for frame, timestamp_us in enumerate(point["timestamp_us"].tolist()):
        rows = {name: values[frame] for name, values in columns.items()}
        row = None
        if lasers:
            kept = np.isin(rows["laser"], list(lasers))
            row = np.where(kept, kept.cumsum(dtype=np.int32) - 1, -1)
            rows = {name: None if values is None else values[kept] for name, values in rows.items()}
        semantic = rows["semantic_class"]
        clouds[timestamp_us] = _Cloud(
            points=torch.from_numpy(np.stack([rows[name] for name in ("x_m", "y_m", "z_m", "intensity")])),
            laser=_tensor(rows["laser"]),
            semantic_class=None if semantic is None else _tensor(semantic),
            row=row,
        )
    return clouds


def _rows(lists: pa.ListArray) -> list[Any]:
    """Return the rows of a list column as numpy arrays, without a copy, and None where a row is null."""
    offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy()
    valid = lists.is_valid().to_pylist()
    bounds = itertools.pairwise(offsets.tolist())
    return [values[start:stop] if there else None for there, (start, stop) in zip(valid, bounds, strict=True)]


def _transform(values: NDArray[Any] | None) -> torch.Tensor | None:
    return None if values is None else _tensor(values).reshape(4, 4)


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    """Return an own copy as a tensor: Arrow's memory is read-only, and lives as long as any part of it."""
    return torch.from_numpy(values.copy())
