"""A drive: from a configuration and a seed to official Waymo `Frame` records."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from datalake.errors import UserError
from datalake.sources.waymo_v1.protos import dataset_pb2, label_pb2
from datalake.synthetic.camera import CAMERA_NAMES, Camera
from datalake.synthetic.image import develop, shade
from datalake.synthetic.labels import (
    PANOPTIC_DIVISOR,
    Points,
    camera_labels,
    encode_png,
    laser_labels,
    panoptic,
)
from datalake.synthetic.lidar import (
    MAX_RANGE_M,
    Lidar,
    Sweep,
    camera_projections,
    pixel_poses,
    sweep,
)
from datalake.synthetic.matrix import compress_floats, compress_ints
from datalake.synthetic.visibility import cast
from datalake.synthetic.world import VIEW_M, Moment, World

_JPEG_QUALITY = 90
_EPOCH_US = 1_550_000_000_000_000
_SHUTTER_S = 0.004
_READOUT_S = 0.012


@dataclass(frozen=True, slots=True)
class DriveConfig:
    """What is recorded, apart from the seed. Raises UserError for what cannot be."""

    image_width: int = 384
    image_height: int = 256
    cameras: tuple[str, ...] = ("FRONT",)
    """Waymo camera names; SIDE cameras are 886/1280 as high as the others."""
    beams: int = 64
    columns: int = 650
    frame_rate_hz: float = 10.0

    def __post_init__(self) -> None:
        if min(self.image_width, self.image_height) < 16:
            raise UserError(
                f"image size {self.image_width}x{self.image_height} is too small: take at least 16x16 pixels"
            )
        if self.beams < 2 or self.columns < 8:
            raise UserError(
                f"a lidar of {self.beams} beams by {self.columns} columns is too small: take at least 2 by 8"
            )
        if not 0 < self.frame_rate_hz <= 10:
            raise UserError(f"frame rate {self.frame_rate_hz} Hz: a sweep takes 0.1 s, take at most 10 Hz")
        for name in self.cameras:
            if name not in CAMERA_NAMES:
                raise UserError(f"unknown camera {name!r}: choose from {', '.join(CAMERA_NAMES)}")
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise UserError(f"cameras {self.cameras}: name at least one, and none twice")

    def mounted(self) -> tuple[Camera, ...]:
        """Return the cameras."""
        return tuple(Camera.mount(name, self.image_width, self.image_height) for name in self.cameras)


def segment_name(config: DriveConfig, seed: int, index: int, frames: int) -> str:
    """Return the name of segment number `index` of a seed; drives that differ in anything differ in their name."""
    return f"sim_{seed:05d}_{index:04d}_{zlib.crc32(repr((config, frames)).encode()):08x}"


def simulate_segment(config: DriveConfig, seed: int, index: int, frames: int) -> Iterator[bytes]:
    """Yield the serialized `Frame`s of one segment, the same bytes for the same arguments.

    But for the segment's name, frame i does not depend on `frames`. Everything but the recording vehicle stands
    still within a frame, at the frame's time, for the lidar as for all cameras: labels, images and points agree
    exactly, while the vehicle itself moves on during the sweep and until each exposure.
    """
    world = World.draw(np.random.default_rng(np.random.SeedSequence([seed, index])))
    recorder = _Recorder(config, world, segment_name(config, seed, index, frames), index)
    for number in range(frames):
        yield recorder.record(number, np.random.SeedSequence([seed, index, number + 1])).SerializeToString(
            deterministic=True
        )


class _Recorder:
    """Records one segment's world frame by frame."""

    def __init__(self, config: DriveConfig, world: World, name: str, index: int) -> None:
        self.config, self.world, self.name, self.index = config, world, name, index
        self.cameras = config.mounted()
        self.lidar = Lidar.mount(config.beams, config.columns)

    def record(self, number: int, seed: np.random.SeedSequence) -> dataset_pb2.Frame:
        t = number / self.config.frame_rate_hz
        lidar_seed, *camera_seeds = seed.spawn(1 + len(self.cameras))
        world, moment = self.world, self.world.at(t)
        vehicle_to_scene = world.ride.vehicle_to_scene(t)
        swept = sweep(
            self.lidar, moment.primitives, world.layout.streets, world.ride, t, world.atmosphere.wetness,
            np.random.default_rng(lidar_seed),
        )  # fmt: skip
        start_us = _EPOCH_US + self.index * 3_600_000_000
        frame = dataset_pb2.Frame(timestamp_micros=start_us + round(t * 1e6))
        frame.pose.transform.extend((world.scene_to_world @ vehicle_to_scene).ravel())
        self._describe(frame)
        for camera, camera_seed in zip(self.cameras, camera_seeds, strict=True):
            self._photograph(frame, camera, moment, t, np.random.default_rng(camera_seed))
        self._add_laser(frame, swept, t)
        scene_to_vehicle = np.linalg.inv(vehicle_to_scene)
        frame.laser_labels.extend(
            laser_labels(
                self.name, world.actors, moment, t, scene_to_vehicle, _points(swept, scene_to_vehicle), MAX_RANGE_M
            )
        )
        _count_objects(frame)
        return frame

    def _describe(self, frame: dataset_pb2.Frame) -> None:
        frame.context.name = self.name
        for camera in self.cameras:
            calibration = frame.context.camera_calibrations.add(
                name=camera.enum, width=camera.width, height=camera.height
            )
            calibration.intrinsic.extend(camera.intrinsic)
            calibration.extrinsic.transform.extend(camera.camera_to_vehicle.ravel())
            calibration.rolling_shutter_direction = dataset_pb2.CameraCalibration.GLOBAL_SHUTTER
        laser = frame.context.laser_calibrations.add(name=dataset_pb2.LaserName.TOP)
        inclination = self.lidar.inclination_rad
        laser.beam_inclinations.extend(inclination)
        laser.beam_inclination_min, laser.beam_inclination_max = inclination[0], inclination[-1]
        laser.extrinsic.transform.extend(self.lidar.lidar_to_vehicle.ravel())
        frame.context.stats.location = "location_sim"
        frame.context.stats.time_of_day = self.world.atmosphere.time_of_day
        frame.context.stats.weather = self.world.atmosphere.weather

    def _camera_to_scene(self, camera: Camera, t: float) -> np.ndarray:
        return self.world.ride.vehicle_to_scene(t + camera.exposure_s) @ camera.camera_to_vehicle

    def _photograph(
        self, frame: dataset_pb2.Frame, camera: Camera, moment: Moment, t: float, rng: np.random.Generator
    ) -> None:
        world, solids = self.world, moment.primitives
        camera_to_scene = self._camera_to_scene(camera, t)
        rays = camera.rays(camera_to_scene)
        hits = cast(rays, solids, camera.view(solids, camera_to_scene), world.layout.streets, VIEW_M)
        light = shade(camera, camera_to_scene, rays, hits, solids, world.atmosphere, world.layout.lamps)
        stream = io.BytesIO()
        Image.fromarray(develop(light, world.atmosphere, rng)).save(stream, "JPEG", quality=_JPEG_QUALITY)

        exposed = t + camera.exposure_s
        seconds = frame.timestamp_micros / 1e6 + camera.exposure_s
        image = frame.images.add(
            name=camera.enum, image=stream.getvalue(), shutter=_SHUTTER_S, pose_timestamp=seconds,
            camera_trigger_time=seconds - _SHUTTER_S / 2, camera_readout_done_time=seconds + _READOUT_S,
        )  # fmt: skip
        image.pose.transform.extend((world.scene_to_world @ world.ride.vehicle_to_scene(exposed)).ravel())
        velocities = (world.scene_to_world[:3, :3] @ v for v in world.ride.velocity(exposed))
        names = ("v_x", "v_y", "v_z", "w_x", "w_y", "w_z")
        for name, value in zip(names, np.concatenate(list(velocities)), strict=True):
            setattr(image.velocity, name, value)

        segments = panoptic(hits, solids)
        segmentation = image.camera_segmentation_label
        segmentation.panoptic_label_divisor = PANOPTIC_DIVISOR
        segmentation.panoptic_label = encode_png(segments)
        segmentation.sequence_id = self.name
        for instance in np.unique(segments % PANOPTIC_DIVISOR).tolist():
            if instance:
                # Instance numbers are those of the segment's objects, in every frame and camera.
                segmentation.instance_id_to_global_id_mapping.add(
                    local_instance_id=instance, global_instance_id=instance, is_tracked=True
                )
        labels = camera_labels(self.name, world.actors, segments, hits, world.atmosphere.sight_m)
        frame.camera_labels.add(name=camera.enum, labels=labels)

    def _add_laser(self, frame: dataset_pb2.Frame, swept: Sweep, t: float) -> None:
        views = [(camera, self._camera_to_scene(camera, t)) for camera in self.cameras]
        laser = frame.lasers.add(name=dataset_pb2.LaserName.TOP)
        for index, target in enumerate((laser.ri_return1, laser.ri_return2)):
            cells = swept.returns[index]
            outside_no_label_zone = np.full_like(cells.range_m, -1)
            image = np.stack([cells.range_m, cells.intensity, cells.elongation, outside_no_label_zone], 2)
            target.range_image_compressed = compress_floats(image)
            projections = camera_projections(swept.points(index), cells.range_m > 0, views)
            target.camera_projection_compressed = compress_ints(projections)
            target.segmentation_label_compressed = compress_ints(np.stack([cells.instance, cells.semantic_class], 2))
        poses = pixel_poses(self.world.scene_to_world @ swept.vehicle_to_scene, self.config.beams)
        laser.ri_return1.range_image_pose_compressed = compress_floats(poses)


def _points(swept: Sweep, scene_to_vehicle: np.ndarray) -> Points:
    """Return the points of both returns in the vehicle frame."""
    scene = np.concatenate([swept.points(index)[:, swept.returns[index].range_m > 0] for index in (0, 1)], axis=1)
    return Points.sort(np.einsum("ij,jn->ni", scene_to_vehicle[:3, :3], scene) + scene_to_vehicle[:3, 3])


def _count_objects(frame: dataset_pb2.Frame) -> None:
    """Fill the statistics that count objects by type."""
    stats = frame.context.stats
    seen: dict[str, int] = {label.id: label.type for camera in frame.camera_labels for label in camera.labels}
    for counts, types in (
        (stats.laser_object_counts, [label.type for label in frame.laser_labels]),
        (stats.camera_object_counts, list(seen.values())),
    ):
        for kind in label_pb2.Label.Type.values():
            if kind in types:
                counts.add(type=kind, count=types.count(kind))
