"""One row group of every table, read together and cut into samples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from datalake.cloud import Cloud, list_rows, own_tensor, read_clouds
from datalake.commit import LakeError
from datalake.sample import Boxes3D, FrameSample, Lidar, Objects, Panoptic, Sample, SampleKey, Sweep, naming
from datalake.sample_options import BOX_3D, SampleOptions
from datalake.segment_files import SegmentFiles
from datalake.sources.frame import LASERS, OBJECT_TYPES
from datalake.sources.panoptic import PanopticError, decode_panoptic


@dataclass(frozen=True, slots=True)
class Part:
    """What alone is wanted of a chunk: rows of `image`, and rows of `point`, the last of which is that of the images.

    images: None where none is wanted
    """

    images: slice | None
    frames: slice


@dataclass(frozen=True, slots=True)
class _OfFrame:
    """What the samples of one frame share."""

    boxes_3d: Boxes3D | None
    vehicle_to_world: torch.Tensor | None
    sweeps: tuple[Sweep, ...] = ()


class Chunk:
    """The rows of one chunk, in memory; `sample` makes one image of it into tensors.

    All that the images share is made here, once, in whatever thread reads the chunk; but sweeps are moved for each
    sample, as those of a whole chunk would take hundreds of megabytes.
    """

    def __init__(self, files: SegmentFiles, group: int, options: SampleOptions, part: Part | None = None) -> None:
        """part: what is wanted of the row group; all where it is None"""
        self._options = options
        self._segment, self._name = files.commit.segment, files.commit.file_name("image")
        columns, rows = options.columns, {}
        self._first = 0
        if part is not None:
            rows["point"] = part.frames
            if part.images is None:
                columns = options.frame_columns
            else:
                rows |= {"image": part.images, "depth": part.images}
                self._first = part.images.start
        self._shared: dict[int, _OfFrame] = {}
        tables = files.read(group, columns, rows)
        self._read_frames(files, group, tables, part)
        if "image" in tables:
            self._read_images(tables)

    def _read_frames(
        self, files: SegmentFiles, group: int, tables: dict[str, dict[str, Any]], part: Part | None
    ) -> None:
        """Take what is read of the frames, and read the frames before them that are asked for."""
        options = self._options
        self._clouds: dict[int, Cloud] = {}
        self._poses: dict[int, NDArray[np.float64] | None] = {}
        point = [tables["point"]] if "point" in tables else []
        if options.sweeps:
            before = options.sweeps if part is None else options.sweeps + 1 - (part.frames.stop - part.frames.start)
            columns = {"point": options.frame_columns["point"]}
            places = files.frames_before(group, before)
            point = [files.read(each, columns, {"point": rows}, of=group)["point"] for each, rows in places] + point
        lasers = {LASERS.index(name) for name in options.lasers}
        for frames in point:
            if options.points:
                self._clouds |= read_clouds(frames, lasers)
            if "vehicle_to_world" in frames:
                times = frames["timestamp_us"].tolist()
                self._poses |= zip(times, list_rows(frames["vehicle_to_world"]), strict=True)
        if options.boxes_3d:
            self._label_3d = tables["label_3d"]

    def _read_images(self, tables: dict[str, dict[str, Any]]) -> None:
        """Take what is read of the images."""
        self._image, label = tables["image"], tables["label"]
        self._camera: list[str] = self._image["camera"].to_pylist()
        self._intrinsic = list_rows(self._image["intrinsic"])
        self._camera_to_vehicle = list_rows(self._image["camera_to_vehicle"])
        if self._options.poses:
            self._exposed = list_rows(self._image["vehicle_to_world"])
        self._boxes = np.stack([label[name] for name in ("x0", "y0", "x1", "y1")], axis=1)
        self._classes = np.array([OBJECT_TYPES.index(name) for name in label["type"].to_pylist()], np.int64)
        self._difficulty = label["difficulty"]
        self._depth_m = label["depth_m"].astype(np.float32, copy=False)
        self._labels: dict[tuple[int, str], list[int]] = {}
        for row, key in enumerate(zip(label["timestamp_us"].tolist(), label["camera"].to_pylist(), strict=True)):
            self._labels.setdefault(key, []).append(row)
        if "depth" in tables:
            self._seen = {name: list_rows(lists) for name, lists in tables["depth"].items()}

    def sample(self, row: int) -> Sample:
        """Return the sample of image row `row` of this chunk.

        Raises LakeError where its JPEG or its panoptic label does not decode, or a sweep has no pose; whatever else is
        raised names the sample.
        """
        key = self._key(row)
        with naming([key]):
            return self._sample(row - self._first, key, self._of_frame(key.timestamp_us))

    def frame(self, timestamp_us: int, rows: Sequence[int]) -> FrameSample:
        """Return a frame, with the samples of these image rows of it; errors are those of `sample`."""
        shared = self._of_frame(timestamp_us)
        samples = []
        for row in rows:
            key = self._key(row)
            with naming([key]):
                samples.append(self._sample(row - self._first, key, shared))
        cloud = self._clouds.get(timestamp_us)
        return FrameSample(
            segment=self._segment,
            timestamp_us=timestamp_us,
            samples=tuple(samples),
            lidar=None if cloud is None else _unseen(cloud),
            boxes_3d=shared.boxes_3d,
            vehicle_to_world=shared.vehicle_to_world,
            sweeps=shared.sweeps,
        )

    def _key(self, row: int) -> SampleKey:
        place = row - self._first
        return SampleKey(self._segment, int(self._image["timestamp_us"][place]), self._camera[place])

    def _of_frame(self, timestamp_us: int) -> _OfFrame:
        options = self._options
        if timestamp_us not in self._shared:
            self._shared[timestamp_us] = _OfFrame(
                boxes_3d=self._boxes_3d(timestamp_us) if options.boxes_3d else None,
                vehicle_to_world=_pose(self._poses[timestamp_us]) if options.poses else None,
            )
        shared = self._shared[timestamp_us]
        return replace(shared, sweeps=self._sweeps(timestamp_us)) if options.sweeps else shared

    def _sample(self, row: int, key: SampleKey, shared: _OfFrame) -> Sample:
        options = self._options
        timestamp_us, camera = key.timestamp_us, key.camera
        width, height = int(self._image["width"][row]), int(self._image["height"][row])
        size = options.image_size or (width, height)
        scale = size[0] / width, size[1] / height
        intrinsic = self._intrinsic[row]
        return Sample(
            key=key,
            image=self._decode(row, key, size),
            objects=self._objects(timestamp_us, camera, scale, size),
            lidar=self._lidar(row, timestamp_us, scale) if options.points else None,
            panoptic=self._panoptic(row, key, size) if options.panoptic else None,
            intrinsic=None if intrinsic is None else torch.from_numpy(intrinsic * [*scale, *scale, 1, 1, 1, 1, 1]),
            camera_to_vehicle=_pose(self._camera_to_vehicle[row]),
            record_size=(width, height),
            boxes_3d=shared.boxes_3d,
            vehicle_to_world=shared.vehicle_to_world,
            exposed_vehicle_to_world=_pose(self._exposed[row]) if options.poses else None,
            sweeps=shared.sweeps,
        )

    def _boxes_3d(self, timestamp_us: int) -> Boxes3D:
        label = self._label_3d
        mine = np.flatnonzero(label["timestamp_us"] == timestamp_us)
        kinds, names = label["type"].take(mine).to_pylist(), label["object_id"].take(mine).to_pylist()
        boxes = np.stack([label[name][mine] for name in BOX_3D], axis=1).astype(np.float32)
        speed = np.stack([label[name][mine] for name in ("speed_x_mps", "speed_y_mps")], axis=1).astype(np.float32)
        return Boxes3D(
            boxes=torch.from_numpy(boxes),
            classes=torch.tensor([OBJECT_TYPES.index(kind) for kind in kinds], dtype=torch.int64),
            speed_mps=torch.from_numpy(speed),
            lidar_points=torch.from_numpy(label["lidar_points"][mine]),
            difficulty=torch.from_numpy(label["difficulty"][mine]),
            object_ids=tuple(names),
        )

    def _sweeps(self, timestamp_us: int) -> tuple[Sweep, ...]:
        """Return the frames before this one, the latest first."""
        times = list(self._clouds)
        place = times.index(timestamp_us)
        before = times[max(0, place - self._options.sweeps) : place][::-1]
        poses = {}
        for time in (timestamp_us, *before):
            if (pose := self._poses[time]) is None:
                raise LakeError(
                    f"{self._name}: the frame at {time} has no pose, and sweeps cannot be moved without; leave sweeps"
                    " out, or build the segment into a new lake from a source that has poses"
                )
            poses[time] = pose.reshape(4, 4)
        to_vehicle = np.linalg.inv(poses[timestamp_us])
        return tuple(self._clouds[time].moved(time, to_vehicle @ poses[time]) for time in before)

    def _decode(self, row: int, key: SampleKey, size: tuple[int, int]) -> torch.Tensor:
        buffer = self._image["jpeg"][row].as_buffer()
        try:
            if self._options.image_size is None:
                return decode_jpeg(own_tensor(np.frombuffer(buffer, np.uint8)), ImageReadMode.RGB)
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
        if not self._options.projections:
            return _unseen(cloud)
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
            pixel_point=own_tensor(seen["point"]),
            pixel_uv=torch.from_numpy(np.stack(uv)),
            pixel_depth_m=own_tensor(seen["depth_m"]),
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


def _unseen(cloud: Cloud) -> Lidar:
    """Return a frame's points, without where any camera sees them."""
    return Lidar(
        points=cloud.points,
        laser=cloud.laser,
        semantic_class=cloud.semantic_class,
        pixel_point=torch.empty(0, dtype=torch.int32),
        pixel_uv=torch.empty(2, 0),
        pixel_depth_m=torch.empty(0),
    )


def _pose(matrix: NDArray[np.float64] | None) -> torch.Tensor | None:
    return None if matrix is None else own_tensor(matrix).reshape(4, 4)
