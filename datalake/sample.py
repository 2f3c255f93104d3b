"""One image with all that the lake knows about it, as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from datalake.sample_key import SampleKey


@contextmanager
def naming(keys: Iterable[SampleKey]) -> Iterator[None]:
    """Let every exception that leaves the block say which samples it was about, in a note."""
    try:
        yield
    except Exception as error:
        about = f"about {', '.join(map(str, keys))}"
        # The inner block knows better.
        if not any(note.startswith("about ") for note in getattr(error, "__notes__", ())):
            error.add_note(about)
        raise


@dataclass(frozen=True, slots=True)
class Objects:
    """The M labelled objects of one image.

    boxes: float32 [M, 4], x0, y0, x1, y1 in pixels, within the image and with an area
    classes: int64 [M], 1 VEHICLE, 2 PEDESTRIAN, 3 SIGN, 4 CYCLIST
    depth_m: float32 [M], mean distance of the object's points from the camera's center, NaN without points
    difficulty: int8 [M], Waymo's levels 1 and 2, 0 where the record has none; None where it was not read
    """

    boxes: torch.Tensor
    classes: torch.Tensor
    depth_m: torch.Tensor
    difficulty: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Lidar:
    """The P points of the image's frame, and where the image's camera sees n of them.

    The samples of one frame may share the memory of its points: change a copy, not these.

    points: float32 [4, P], rows x, y, z in metres (vehicle frame at the frame's time) and intensity
    laser: int8 [P], 1 TOP, 2 FRONT, 3 SIDE_LEFT, 4 SIDE_RIGHT, 5 REAR
    semantic_class: int8 [P], 0 undefined, or None where the frame's points are not labelled
    pixel_point: int32 [n], indices into the P points
    pixel_uv: float32 [2, n], the record's own projections of these, in pixels
    pixel_depth_m: float32 [n], their distance from the camera's center
    """

    points: torch.Tensor
    laser: torch.Tensor
    semantic_class: torch.Tensor | None
    pixel_point: torch.Tensor
    pixel_uv: torch.Tensor
    pixel_depth_m: torch.Tensor

    def of_laser(self, number: int) -> Lidar:
        """Return the points of one laser alone, in their order; the very same where there are no others."""
        kept = self.laser == number
        if bool(kept.all()):
            return self
        seen = kept[self.pixel_point.long()]
        row = kept.cumsum(0, dtype=torch.int32) - 1
        return Lidar(
            points=self.points[:, kept],
            laser=self.laser[kept],
            semantic_class=None if self.semantic_class is None else self.semantic_class[kept],
            pixel_point=row[self.pixel_point[seen].long()],
            pixel_uv=self.pixel_uv[:, seen],
            pixel_depth_m=self.pixel_depth_m[seen],
        )


@dataclass(frozen=True, slots=True)
class Panoptic:
    """What each pixel shows: official class uint8 [H, W], and instance int32 [H, W] within the class."""

    semantic_class: torch.Tensor
    instance: torch.Tensor


@dataclass(frozen=True, slots=True)
class Boxes3D:
    """The M labelled objects of one frame, in the vehicle frame at the frame's time.

    boxes: float32 [M, 7], center x, y, z, length, width, height in metres, heading in radians (about z, 0 along x)
    classes: int64 [M], as in `Objects`
    speed_mps: float32 [M, 2], the record's own speeds along x and y
    lidar_points: int32 [M], how many of the frame's points lie in each
    difficulty: int8 [M], Waymo's levels 1 and 2, 0 where the record has none
    object_ids: M names, each the same in all frames of the segment
    """

    boxes: torch.Tensor
    classes: torch.Tensor
    speed_mps: torch.Tensor
    lidar_points: torch.Tensor
    difficulty: torch.Tensor
    object_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The points of an earlier frame of the segment, in the vehicle frame of the frame that they are given with.

    What stood still in the world lies where it lies now; what moved lies where it was.

    timestamp_us: of that earlier frame
    points: float32 [4, P], as in `Lidar`
    laser: int8 [P], as in `Lidar`
    """

    timestamp_us: int
    points: torch.Tensor
    laser: torch.Tensor


@dataclass(frozen=True, slots=True)
class Sample:
    """One camera's image with everything that belongs to it, all at the image's (resized) scale.

    Pixels are continuous coordinates: pixel [row i, column j] covers [j, j + 1) x [i, i + 1).

    image: uint8 [3, H, W], RGB
    lidar: None where points are not asked for
    panoptic: None where the image is not labelled so, or it is not asked for
    intrinsic: float64 [9] (f_u, f_v, c_u, c_v, k1, k2, p1, p2, k3), or None where the record has none
    camera_to_vehicle: float64 [4, 4], or None where the record has none
    record_size: width and height in pixels of the record's image, before it was resized; None where it is not of a lake
    boxes_3d: None where they are not asked for
    vehicle_to_world: float64 [4, 4] at the frame's time, which points and 3D boxes are of; None where poses are not
        asked for, or the record has none
    exposed_vehicle_to_world: float64 [4, 4] at this image's exposure, 20 to 70 ms later, or None likewise
    sweeps: the frames before this one as far as they were asked for and the segment has them, the latest first
    """

    key: SampleKey
    image: torch.Tensor
    objects: Objects
    lidar: Lidar | None
    panoptic: Panoptic | None
    intrinsic: torch.Tensor | None
    camera_to_vehicle: torch.Tensor | None
    record_size: tuple[int, int] | None = None
    boxes_3d: Boxes3D | None = None
    vehicle_to_world: torch.Tensor | None = None
    exposed_vehicle_to_world: torch.Tensor | None = None
    sweeps: tuple[Sweep, ...] = ()


@dataclass(frozen=True, slots=True)
class FrameSample:
    """One moment of a segment, with the images of several cameras, or of none; they share all that is the frame's.

    samples: of the cameras that were asked for and that the frame has, in the record's order
    lidar: without projections, which the samples have each for their own camera; None where points are not asked for
    boxes_3d, vehicle_to_world, sweeps: as in `Sample`
    """

    segment: str
    timestamp_us: int
    samples: tuple[Sample, ...]
    lidar: Lidar | None
    boxes_3d: Boxes3D | None
    vehicle_to_world: torch.Tensor | None
    sweeps: tuple[Sweep, ...]


def with_sweeps(sample: Sample | FrameSample) -> torch.Tensor:
    """Return the sample's points and then those of its sweeps, float32 [5, P]: x, y, z, intensity, age in seconds.

    Raises ValueError where the points were not asked for.
    """
    if sample.lidar is None:
        raise ValueError("a sample without points: ask for them (points=True)")
    now = sample.key.timestamp_us if isinstance(sample, Sample) else sample.timestamp_us
    parts = [(now, sample.lidar.points), *((sweep.timestamp_us, sweep.points) for sweep in sample.sweeps)]
    aged = [torch.cat([points, points.new_full((1, points.shape[1]), (now - t) / 1e6)]) for t, points in parts]
    return torch.cat(aged, dim=1)
