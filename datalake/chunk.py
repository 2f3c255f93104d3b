"""One row group of every table, read together and cut into samples."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from datalake.commit import Commit, LakeError
from datalake.lake import Lake
from datalake.sample import Lidar, Objects, Panoptic, Sample, SampleKey
from datalake.waymo.frame import OBJECT_TYPES

_COLUMNS = {
    "image": ["timestamp_us", "camera", "jpeg", "width", "height", "intrinsic", "camera_to_vehicle"],
    "label": ["timestamp_us", "camera", "type", "x0", "y0", "x1", "y1", "depth_m"],
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
    """

    image_size: tuple[int, int] | None
    points: bool
    panoptic: bool


class SegmentFiles:
    """The open Parquet files of one segment; footers are read once, when a table is first used."""

    def __init__(self, lake: Lake, commit: Commit) -> None:
        self._lake, self.commit = lake, commit
        self._open: dict[str, pq.ParquetFile] = {}

    def read(self, table: str, group: int, columns: list[str]) -> dict[str, Any]:
        """Return columns of one row group: numpy arrays for numbers, Arrow arrays for everything else."""
        if table not in self._open:
            path = self._lake.store.path(self.commit.file_name(table))
            if self._lake.store.is_local:
                self._open[table] = pq.ParquetFile(path, memory_map=True)
            else:
                self._open[table] = pq.ParquetFile(self._lake.store.fs.open(path, "rb"), pre_buffer=True)
        rows = self._open[table].read_row_group(group, columns=columns, use_threads=False)
        arrays = (rows.column(name).combine_chunks() for name in columns)
        return {name: _plain(array) for name, array in zip(columns, arrays, strict=True)}

    def close(self) -> None:
        """Close every file."""
        for parquet in self._open.values():
            parquet.close(force=True)
        self._open.clear()


class Chunk:
    """The rows of one chunk, in memory; `sample` makes one picture of it into tensors."""

    def __init__(self, files: SegmentFiles, group: int, options: SampleOptions) -> None:
        self._files, self._group, self._options = files, group, options
        columns = _COLUMNS["image"] + (_PANOPTIC if options.panoptic else [])
        self._image = files.read("image", group, columns)
        self._label = files.read("label", group, _COLUMNS["label"])
        if options.points:
            self._point = files.read("point", group, _COLUMNS["point"])
            self._depth = files.read("depth", group, _COLUMNS["depth"])

    def sample(self, row: int) -> Sample:
        """Return the sample of image row `row` of this chunk; raises LakeError where its JPEG does not decode."""
        timestamp_us = int(self._image["timestamp_us"][row])
        camera = self._image["camera"][row].as_py()
        key = SampleKey(self._files.commit.segment, timestamp_us, camera)
        width, height = int(self._image["width"][row]), int(self._image["height"][row])
        size = self._options.image_size or (width, height)
        scale = size[0] / width, size[1] / height
        return Sample(
            key=key,
            image=self._decode(row, key, size),
            objects=self._objects(timestamp_us, camera, scale),
            lidar=self._lidar(row, timestamp_us, scale) if self._options.points else None,
            panoptic=self._panoptic(row, size) if self._options.panoptic else None,
            intrinsic=self._intrinsic(row, scale),
            camera_to_vehicle=_matrix(self._image["camera_to_vehicle"][row]),
        )

    def _decode(self, row: int, key: SampleKey, size: tuple[int, int]) -> torch.Tensor:
        buffer = self._image["jpeg"][row].as_buffer()
        try:
            if self._options.image_size is None:
                jpeg = torch.from_numpy(np.frombuffer(buffer, np.uint8).copy())
                return decode_jpeg(jpeg, ImageReadMode.RGB)
            with Image.open(io.BytesIO(buffer), formats=("JPEG",)) as picture:
                # The decoder itself halves the picture while it stays larger than needed: fewer pixels to resize.
                picture.draft("RGB", size)
                resized = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)
                return torch.from_numpy(np.array(resized).transpose(2, 0, 1).copy())
        except (RuntimeError, OSError) as error:
            raise LakeError(
                f"{self._files.commit.file_name('image')}: the JPEG of {key.camera} at {key.timestamp_us} does not"
                f" decode: {error}; exclude the segment, or build it again from an intact source"
            ) from error

    def _objects(self, timestamp_us: int, camera: str, scale: tuple[float, float]) -> Objects:
        label = self._label
        mine = np.flatnonzero(label["timestamp_us"] == timestamp_us)
        mine = mine[[label["camera"][int(row)].as_py() == camera for row in mine]] if len(mine) else mine
        edges = [label[name][mine] * factor for name, factor in zip(("x0", "y0", "x1", "y1"), scale * 2, strict=True)]
        classes = [OBJECT_TYPES.index(label["type"][int(row)].as_py()) for row in mine]
        return Objects(
            boxes=torch.from_numpy(np.stack(edges, axis=1).astype(np.float32)),
            classes=torch.tensor(classes, dtype=torch.int64),
            depth_m=torch.from_numpy(label["depth_m"][mine].astype(np.float32)),
        )

    def _lidar(self, row: int, timestamp_us: int, scale: tuple[float, float]) -> Lidar:
        point, depth = self._point, self._depth
        frame = int(np.flatnonzero(point["timestamp_us"] == timestamp_us)[0])
        semantic = point["semantic_class"]
        uv = np.stack((_values(depth["u"], row), _values(depth["v"], row)))
        return Lidar(
            points=torch.from_numpy(
                np.stack([_values(point[name], frame) for name in ("x_m", "y_m", "z_m", "intensity")])
            ),
            laser=_tensor(_values(point["laser"], frame)),
            semantic_class=_tensor(_values(semantic, frame)) if semantic[frame].is_valid else None,
            pixel_point=_tensor(_values(depth["point"], row)),
            # A projection names a pixel; its centre is half a pixel further, and that is what scales.
            pixel_uv=torch.from_numpy((uv + np.float32(0.5)) * np.array(scale, np.float32)[:, None]),
            pixel_depth_m=_tensor(_values(depth["depth_m"], row)),
        )

    def _panoptic(self, row: int, size: tuple[int, int]) -> Panoptic | None:
        if not self._image["panoptic"][row].is_valid:
            return None
        with Image.open(io.BytesIO(self._image["panoptic"][row].as_buffer()), formats=("PNG",)) as picture:
            code = np.array(picture.resize(size, Image.Resampling.NEAREST)).astype(np.int32)
        divisor = int(self._image["panoptic_divisor"][row])
        return Panoptic(torch.from_numpy((code // divisor).astype(np.uint8)), torch.from_numpy(code % divisor))

    def _intrinsic(self, row: int, scale: tuple[float, float]) -> torch.Tensor | None:
        values = self._image["intrinsic"][row].as_py()
        if values is None:
            return None
        return torch.tensor(values, dtype=torch.float64) * torch.tensor([*scale, *scale, 1, 1, 1, 1, 1])


def _plain(array: pa.Array) -> Any:
    """Return a numeric column as numpy (nulls are NaN), anything else as it is."""
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        return array.to_numpy(zero_copy_only=False)
    return array


def _values(lists: pa.ListArray, row: int) -> NDArray[Any]:
    """Return the values of one row of a list column, without a copy."""
    start, stop = lists.offsets[row].as_py(), lists.offsets[row + 1].as_py()
    return lists.values.slice(start, stop - start).to_numpy()


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    """Return an own copy as a tensor: Arrow's memory is read-only and shared by the whole chunk."""
    return torch.from_numpy(values.copy())


def _matrix(value: Any) -> torch.Tensor | None:
    values = value.as_py()
    return None if values is None else torch.tensor(values, dtype=torch.float64).reshape(4, 4)
