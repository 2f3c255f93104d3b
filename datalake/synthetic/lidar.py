"""The TOP lidar: cell geometry, casting a sweep, echoes, and where echoes lie in the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datalake.synthetic.camera import Camera, nearest_m
from datalake.synthetic.materials import LIDAR_CLASS, Kind, Material
from datalake.synthetic.motion import Ride, euler_from_rotation, rotation_from_euler
from datalake.synthetic.primitives import EDGES, Primitives, surface
from datalake.synthetic.streets import Streets
from datalake.synthetic.visibility import GROUND, Hits, Rays, Windows, cast

SWEEP_S = 0.1
MAX_RANGE_M = 75.0
_YAW_RAD = 2.58
_POSITION_M = (1.43, 0.0, 2.2)
# A second ray inside the beam; where it meets something else, the beam hits an edge and returns twice.
_DIVERGENCE_RAD = 0.0035
_SECOND_RETURN_M = 0.5
_RANGE_NOISE_M = 0.012

_REFLECTIVITY = {
    Material.CABIN: 0.35, Material.TYRE: 0.1, Material.FOLIAGE: 1.6, Material.SIGN: 6.0, Material.METAL: 1.2,
    Material.FACADE: 0.9, Material.CLOTH: 1.2, Material.LAMP: 1.0,
}  # fmt: skip
_MATERIAL_GAIN = np.array([_REFLECTIVITY.get(material, 1.0) for material in Material], np.float32)
_GROUND_REFLECTIVITY = np.zeros(len(Kind), np.float32)
_GROUND_REFLECTIVITY[[Kind.ROAD, Kind.KERB, Kind.SIDEWALK, Kind.YARD]] = 0.13, 0.3, 0.28, 0.3
_GROUND_REFLECTIVITY[[Kind.WHITE_PAINT, Kind.YELLOW_PAINT]] = 0.9, 0.7


@dataclass(frozen=True, slots=True)
class Lidar:
    """B beams by C columns. Row 0 is the highest beam and the azimuth falls with the column."""

    inclination_rad: np.ndarray
    """float64 [B], ascending, as Waymo's calibration lists them (row B-1-i of the image is beam i)."""
    columns: int
    lidar_to_vehicle: np.ndarray
    """float64 [4, 4]."""

    @staticmethod
    def mount(beams: int, columns: int) -> Lidar:
        """Return a lidar whose beams crowd towards the horizon, as those of Waymo's do."""
        share = (np.arange(beams) + 0.5) / beams
        inclination = -0.31 + (0.045 + 0.31) * (1 - (1 - share) ** 1.7)
        transform = np.eye(4)
        transform[:3, :3] = rotation_from_euler(0.004, -0.003, _YAW_RAD)
        transform[:3, 3] = _POSITION_M
        return Lidar(inclination, columns, transform)

    @property
    def rows_rad(self) -> np.ndarray:
        """float64 [B]: inclination of each row, falling."""
        return self.inclination_rad[::-1]

    @property
    def columns_rad(self) -> np.ndarray:
        """float64 [C]: azimuth of each column in the lidar's own frame, falling from about pi minus its yaw."""
        share = (self.columns - np.arange(self.columns) - 0.5) / self.columns
        yaw = np.arctan2(self.lidar_to_vehicle[1, 0], self.lidar_to_vehicle[0, 0])
        return (2 * share - 1) * np.pi - yaw

    @property
    def fired_s(self) -> np.ndarray:
        """float64 [C]: when each column fires, after the frame's time."""
        return SWEEP_S * (np.arange(self.columns) + 0.5) / self.columns

    def rays(self, lidar_to_scene: np.ndarray) -> Rays:
        """Return two interleaved rows of rays per beam: through the cell's middle, and beside it.

        `lidar_to_scene` is float64 [C, 4, 4], one pose per column.
        """
        beside = _DIVERGENCE_RAD * 0.7
        inclination = np.stack([self.rows_rad, self.rows_rad - beside], 1).ravel()[:, None]
        azimuth = self.columns_rad[None, :] + beside * (np.arange(len(inclination)) % 2)[:, None]
        local = np.stack(
            [
                np.cos(inclination) * np.cos(azimuth),
                np.cos(inclination) * np.sin(azimuth),
                np.sin(inclination) + 0 * azimuth,
            ]
        ).astype(np.float32)
        rotation = lidar_to_scene[:, :3, :3].astype(np.float32)
        direction = np.stack([(rotation[:, i].T[:, None, :] * local).sum(0) for i in range(3)])
        return Rays(np.ascontiguousarray(lidar_to_scene[:, :3, 3].T), direction)

    def view(self, primitives: Primitives, lidar_to_scene: np.ndarray) -> Windows:
        """Return the windows of all solids in range, for the poses [C, 4, 4] of the columns."""
        here = lidar_to_scene[self.columns // 2, :3, 3]
        nearest = nearest_m(primitives, here)
        near = np.flatnonzero(nearest < MAX_RANGE_M + 2)
        solids = primitives.take(near)
        corners = solids.corners
        spans = [self._span(corners, solids, lidar_to_scene[c]) for c in (0, self.columns // 2, -1)]
        low, high, first, last = (np.stack(values) for values in zip(*spans, strict=True))
        pitch = 2 * np.pi / self.columns
        # Poses of one sweep see a solid in almost the same direction: bring their azimuths to one turn.
        first, last = (v - 2 * np.pi * np.rint((first - first[:1]) / (2 * np.pi)) for v in (first, last))
        margin = _DIVERGENCE_RAD + 0.002
        tops, bottoms = high.max(0) + margin, low.min(0) - margin
        rows_down = -self.rows_rad
        row0 = 2 * np.searchsorted(rows_down, -tops)
        row1 = 2 * np.searchsorted(rows_down, -bottoms, side="right")
        # Columns count how far the azimuth has fallen from that of column 0.
        start = self.columns_rad[0]
        c0 = np.floor((start - last.max(0) - margin) / pitch).astype(np.int64) - 1
        c1 = np.ceil((start - first.min(0) + margin) / pitch).astype(np.int64) + 2
        wide = c1 - c0 >= self.columns
        c0, c1 = np.where(wide, 0, c0), np.where(wide, self.columns, c1)
        turn = np.where(wide, 0, c0 // self.columns * self.columns)
        c0, c1 = c0 - turn, c1 - turn
        index = np.concatenate([np.arange(len(near)), np.flatnonzero(c1 > self.columns)])
        wrapped = np.arange(len(index)) >= len(near)
        bounds = np.stack(
            [
                row0[index], row1[index], np.where(wrapped, 0, c0[index]),
                np.where(wrapped, c1[index] - self.columns, np.minimum(c1[index], self.columns)),
            ],
            1,
        )  # fmt: skip
        kept = (bounds[:, 0] < bounds[:, 1]) & (bounds[:, 2] < bounds[:, 3])
        # The lidar moves up to a few metres during its sweep.
        travelled = np.linalg.norm(lidar_to_scene[-1, :3, 3] - lidar_to_scene[0, :3, 3])
        return Windows(near[index][kept], bounds[kept], nearest[near][index][kept] - travelled)

    def _span(
        self, corners: np.ndarray, solids: Primitives, lidar_to_scene: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return lowest and highest inclination, first and last azimuth (unwrapped) of solids, each [P]."""
        rotation, position = lidar_to_scene[:3, :3], lidar_to_scene[:3, 3]
        turned = (corners - position) @ rotation
        start, end = turned[:, EDGES[:, 0]], turned[:, EDGES[:, 1]]
        along = end - start
        flat = np.maximum((along[..., :2] ** 2).sum(-1), 1e-9)
        share = np.clip(-(start[..., :2] * along[..., :2]).sum(-1) / flat, 0, 1)
        points = np.concatenate([turned, start + share[..., None] * along], 1)
        inclination = np.arctan2(points[..., 2], np.hypot(points[..., 0], points[..., 1]))
        center = (solids.center - position) @ rotation
        middle = np.arctan2(center[:, 1], center[:, 0])
        azimuth = np.arctan2(turned[..., 1], turned[..., 0]) - middle[:, None]
        azimuth -= 2 * np.pi * np.rint(azimuth / (2 * np.pi))
        first, last = middle + azimuth.min(1), middle + azimuth.max(1)
        low, high = inclination.min(1), inclination.max(1)
        # Above or below a solid, every direction may meet it.
        around = np.hypot(center[:, 0], center[:, 1]) < solids.radius_m
        inside = around & (last - first > np.pi * 0.95)
        low = np.where(inside & (center[:, 2] - solids.radius_m < 0), -np.pi / 2, low)
        high = np.where(inside & (center[:, 2] + solids.radius_m > 0), np.pi / 2, high)
        return low, high, np.where(inside, middle - np.pi, first), np.where(inside, middle + np.pi, last)


@dataclass(frozen=True, slots=True)
class Return:
    """One return of every cell, [B, C]; cells without one have range -1."""

    range_m: np.ndarray
    intensity: np.ndarray
    elongation: np.ndarray
    semantic_class: np.ndarray
    instance: np.ndarray


@dataclass(frozen=True, slots=True)
class Sweep:
    """One turn of the lidar."""

    returns: tuple[Return, Return]
    vehicle_to_scene: np.ndarray
    """float64 [C, 4, 4]: where the vehicle was when each column fired."""
    direction: np.ndarray
    """float32 [3, B, C]: the cells' rays, scene frame."""
    origin: np.ndarray
    """float64 [3, C]: where the rays start, scene frame."""

    def points(self, index: int) -> np.ndarray:
        """Return float64 [3, B, C]: the points of return 0 or 1, scene frame (meaningless without one)."""
        return self.origin[:, None, :] + self.direction * self.returns[index].range_m.astype(np.float64)


def sweep(
    lidar: Lidar,
    primitives: Primitives,
    streets: Streets,
    ride: Ride,
    t: float,
    wetness: float,
    rng: np.random.Generator,
) -> Sweep:
    """Turn the lidar once from `t` seconds on, through solids that stand still meanwhile."""
    vehicle_to_scene = ride.vehicle_to_scene(t + lidar.fired_s)
    lidar_to_scene = vehicle_to_scene @ lidar.lidar_to_vehicle
    rays = lidar.rays(lidar_to_scene)
    hits = cast(rays, primitives, lidar.view(primitives, lidar_to_scene), streets, MAX_RANGE_M)
    power = _echo(rays, hits, primitives, wetness)
    kind = np.where(hits.primitive >= 0, primitives.kind[hits.primitive], hits.ground_kind)
    instance = np.where(hits.primitive >= 0, primitives.instance[hits.primitive], 0)
    # Weak echoes are lost, the weaker the likelier.
    heard = np.isfinite(hits.distance_m) & (power > 0.012 + 0.02 * rng.standard_exponential(power.shape, np.float32))
    noise = rng.standard_normal(power.shape, np.float32)
    measured = np.where(heard, hits.distance_m, -1)
    first, second = measured[::2], measured[1::2]
    apart = (first > 0) & (second > 0) & (np.abs(second - first) > _SECOND_RETURN_M)
    measured[1::2][~apart] = -1
    measured = np.where(measured > 0, measured + _RANGE_NOISE_M * noise, -1).astype(np.float32)
    gone = measured <= 0
    # Like the real sensor's, these have about ten significant bits.
    intensity = np.where(gone, -1, np.tanh(power) * (1 + 0.05 * noise)).astype(np.float16).astype(np.float32)
    elongation = np.where(gone, -1, np.abs(noise) * 0.03 + 0.1 * (kind == Kind.VEGETATION))
    elongation = elongation.astype(np.float16).astype(np.float32)
    classes = np.where(gone, 0, LIDAR_CLASS[kind])
    instance = np.where(gone, 0, instance)
    returns = tuple(
        Return(measured[i::2], intensity[i::2], elongation[i::2], classes[i::2], instance[i::2]) for i in (0, 1)
    )
    return Sweep((returns[0], returns[1]), vehicle_to_scene, rays.direction[:, ::2], rays.origin)


def _echo(rays: Rays, hits: Hits, primitives: Primitives, wetness: float) -> np.ndarray:
    """Return float32 [2B, C]: the strength of the echo, about the surface's reflectivity at close range."""
    shape = hits.distance_m.shape
    reflectivity = np.zeros(shape, np.float32)
    cosine = np.abs(rays.direction[2]).copy()
    on_ground = hits.primitive == GROUND
    ground = _GROUND_REFLECTIVITY * (1 - 0.75 * wetness)
    reflectivity[on_ground] = ground[hits.ground_kind[on_ground]]
    solid = np.flatnonzero(hits.primitive.ravel() >= 0)
    index = hits.primitive.ravel()[solid]
    brightness = primitives.color.mean(1) ** 0.6 * _MATERIAL_GAIN[primitives.material]
    reflectivity.ravel()[solid] = brightness[index] + 0.02
    direction = rays.direction.reshape(3, -1)[:, solid]
    origin = rays.origin[:, solid % shape[1]]
    normal, _ = surface(primitives, index, origin, direction, hits.distance_m.ravel()[solid])
    cosine.ravel()[solid] = np.abs((normal * direction.T).sum(1))
    distance = np.where(np.isfinite(hits.distance_m), hits.distance_m, MAX_RANGE_M)
    return reflectivity * (0.15 + 0.85 * cosine) / (1 + (distance / 45) ** 2)


def pixel_poses(vehicle_to_world: np.ndarray, beams: int) -> np.ndarray:
    """Return float32 [B, C, 6]: roll, pitch, yaw, x, y, z of the vehicle at each column's time [C, 4, 4]."""
    roll, pitch, yaw = euler_from_rotation(vehicle_to_world[:, :3, :3])
    row = np.stack([roll, pitch, yaw, *vehicle_to_world[:, :3, 3].T], 1).astype(np.float32)
    return np.broadcast_to(row, (beams, *row.shape))


def camera_projections(points: np.ndarray, valid: np.ndarray, views: list[tuple[Camera, np.ndarray]]) -> np.ndarray:
    """Return int32 [B, C, 6]: up to two of (camera, u, v) for scene points [3, B, C]; 0 = none.

    `views` gives each camera and its `camera_to_scene` at its own exposure.
    """
    slots = np.zeros((*valid.shape, 6), np.int32)
    flat, where = slots.reshape(-1, 6), np.flatnonzero(valid)
    scene = points.reshape(3, -1)[:, where]
    for camera, camera_to_scene in views:
        local = np.einsum("ji,jn->in", camera_to_scene[:3, :3], scene - camera_to_scene[:3, 3:])
        u, v, inside = camera.project(local)
        target = where[inside]
        found = np.stack([np.full(len(target), camera.enum), np.floor(u[inside]), np.floor(v[inside])], 1)
        second = flat[target, 0] > 0
        flat[target[~second], :3] = found[~second]
        flat[target[second], 3:] = found[second]
    return slots
