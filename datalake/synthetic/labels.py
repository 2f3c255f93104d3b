"""Labels, measured on what the sensors saw: 3D boxes, 2D boxes and the panoptic image."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from datalake.sources.waymo_v1.protos import label_pb2
from datalake.synthetic.body import about_z
from datalake.synthetic.materials import CAMERA_CLASS
from datalake.synthetic.primitives import Primitives
from datalake.synthetic.traffic import Actor
from datalake.synthetic.visibility import Hits
from datalake.synthetic.world import Moment

PANOPTIC_DIVISOR = 1000
_MIN_PIXELS = 25
_MIN_VISIBLE = 0.18
_HARD_VISIBLE = 0.45
_HARD_HEIGHT = 0.035  # of the image's height
_HARD_POINTS = 5


@dataclass(frozen=True, slots=True)
class Points:
    """Lidar points of both returns in the vehicle frame at the frame's time, sorted by x."""

    xyz_m: np.ndarray
    """float64 [N, 3]."""

    @staticmethod
    def sort(xyz_m: np.ndarray) -> Points:
        """Return `xyz_m` [N, 3] sorted."""
        return Points(xyz_m[np.argsort(xyz_m[:, 0], kind="stable")])

    def inside(self, center: np.ndarray, size: np.ndarray, heading: float) -> int:
        """Count the points in a box (center, length-width-height, heading in the vehicle frame)."""
        reach = np.hypot(size[0], size[1]) / 2
        start, end = np.searchsorted(self.xyz_m[:, 0], [center[0] - reach, center[0] + reach])
        near = self.xyz_m[start:end] - center
        near = near[np.abs(near[:, 1]) <= reach]
        local = near @ about_z(np.array([heading]))[0]
        return int((np.abs(local) <= size / 2).all(1).sum())


def object_id(segment: str, index: int) -> str:
    """Return the identity of actor number `index`, the same in every frame and every camera."""
    return f"{segment}_{index:03d}"


def laser_labels(
    segment: str,
    actors: tuple[Actor, ...],
    moment: Moment,
    t: float,
    scene_to_vehicle: np.ndarray,
    points: Points,
    range_m: float,
) -> list[label_pb2.Label]:
    """Return the 3D boxes, in the vehicle frame, of all actors in range with at least one point."""
    labels = []
    rotation = scene_to_vehicle[:3, :3]
    turn = np.arctan2(rotation[1, 0], rotation[0, 0])
    for index, actor in enumerate(actors):
        outline = actor.outline
        size = np.array([outline.length_m, outline.width_m, outline.height_m])
        base = moment.position_m[index] + [0, 0, outline.height_m / 2]
        center = rotation @ base + scene_to_vehicle[:3, 3]
        if np.hypot(center[0], center[1]) > range_m:
            continue
        heading = float((moment.heading_rad[index] + turn + np.pi) % (2 * np.pi) - np.pi)
        count = points.inside(center, size, heading)
        if not count:
            continue
        label = label_pb2.Label(id=object_id(segment, index), type=actor.label_type)
        label.box.center_x, label.box.center_y, label.box.center_z = center
        label.box.length, label.box.width, label.box.height = size
        label.box.heading = heading
        # Of the object over the ground, along the vehicle's axes.
        forward = np.array([np.cos(heading), np.sin(heading)])
        speed = forward * float(actor.track.motion.speed(t))
        gain = forward * actor.track.motion.acceleration(t)
        label.metadata.speed_x, label.metadata.speed_y = speed
        label.metadata.accel_x, label.metadata.accel_y = gain
        label.num_lidar_points_in_box = label.num_top_lidar_points_in_box = count
        if count <= _HARD_POINTS:
            label.detection_difficulty_level = label_pb2.Label.LEVEL_2
        labels.append(label)
    return labels


def panoptic(hits: Hits, primitives: Primitives) -> np.ndarray:
    """Return uint16 [H, W]: camera class * 1000 + object instance."""
    solid = hits.primitive >= 0
    kind = np.where(solid, primitives.kind[hits.primitive], hits.ground_kind)
    instance = np.where(solid, primitives.instance[hits.primitive], 0)
    return (CAMERA_CLASS[kind] * np.uint16(PANOPTIC_DIVISOR) + instance).astype(np.uint16)


def encode_png(image: np.ndarray) -> bytes:
    """Return the PNG of a uint16 image."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def camera_labels(
    segment: str, actors: tuple[Actor, ...], image: np.ndarray, hits: Hits, sight_m: float
) -> list[label_pb2.Label]:
    """Return tight 2D boxes around the visible pixels of each object in a panoptic image [H, W].

    Objects of which little shows, and those beyond `sight_m` in the haze, have none. Nor have signs, as in the
    Waymo Open Dataset.
    """
    instance = image % PANOPTIC_DIVISOR
    rows, columns = np.nonzero(instance)
    numbers = instance[rows, columns].astype(np.int64)
    order = np.argsort(numbers, kind="stable")
    rows, columns, numbers = rows[order], columns[order], numbers[order]
    found, starts, counts = np.unique(numbers, return_index=True, return_counts=True)
    distance = hits.distance_m[rows, columns]
    labels = []
    for number, start, count in zip(found.tolist(), starts, counts, strict=True):
        end = start + count
        actor = actors[number - 1]
        visible = count / hits.covered[number]
        faint = count < _MIN_PIXELS or visible < _MIN_VISIBLE or distance[start] > sight_m
        if faint or actor.label_type == label_pb2.Label.TYPE_SIGN:
            continue
        left, right = columns[start:end].min(), columns[start:end].max() + 1
        top, bottom = rows[start:end].min(), rows[start:end].max() + 1
        label = label_pb2.Label(id=object_id(segment, number - 1), type=actor.label_type)
        label.box.center_x, label.box.center_y = (left + right) / 2, (top + bottom) / 2
        label.box.length, label.box.width = right - left, bottom - top
        if visible < _HARD_VISIBLE or bottom - top < _HARD_HEIGHT * len(image):
            label.detection_difficulty_level = label_pb2.Label.LEVEL_2
        labels.append(label)
    return labels
