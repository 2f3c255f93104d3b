"""How things move: speed profiles, tracks along curves, and the recording vehicle's own ride."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from datalake.synthetic.curve import Curve


@dataclass(frozen=True, slots=True)
class Motion:
    """One smooth change of speed (m/s), from `change_s` seconds on and `over_s` seconds long."""

    start_speed: float = 0.0
    end_speed: float = 0.0
    change_s: float = 0.0
    over_s: float = 1.0

    @staticmethod
    def steady(speed: float) -> Motion:
        """Return a motion at constant speed (m/s)."""
        return Motion(speed, speed)

    def distance_m(self, t: np.ndarray | float) -> np.ndarray:
        """Return the distance travelled since t = 0 s."""
        share = np.clip((np.asarray(t, np.float64) - self.change_s) / self.over_s, 0, 1)
        gained = self.over_s * (share**3 - share**4 / 2) + np.maximum(t - self.change_s - self.over_s, 0)
        return self.start_speed * t + (self.end_speed - self.start_speed) * gained

    def speed(self, t: np.ndarray | float) -> np.ndarray:
        """Return the speed (m/s)."""
        share = np.clip((np.asarray(t, np.float64) - self.change_s) / self.over_s, 0, 1)
        return self.start_speed + (self.end_speed - self.start_speed) * (3 * share**2 - 2 * share**3)

    def acceleration(self, t: float) -> float:
        """Return the acceleration (m/s^2)."""
        share = float(np.clip((t - self.change_s) / self.over_s, 0, 1))
        return (self.end_speed - self.start_speed) * 6 * share * (1 - share) / self.over_s


STANDING = Motion()


@dataclass(frozen=True, slots=True)
class Track:
    """A body's way along a curve, from `start_m` on, `left_m` beside it, forward (1) or backward (-1).

    `turned_rad` is added to the heading, for what stands across. A stride of `stride_m` is one swing of limbs.
    """

    curve: Curve
    start_m: float
    left_m: float
    direction: int = 1
    motion: Motion = STANDING
    turned_rad: float = 0.0
    stride_m: float = 1.4
    raised_m: float = 0.0

    def pose(self, t: float) -> tuple[float, float, float, float]:
        """Return x, y (m), heading (rad) in the scene and the phase of the gait (rad) at time `t` (s)."""
        travelled = float(self.motion.distance_m(t))
        x, y, heading = self.curve.pose(self.start_m + self.direction * travelled, self.left_m)
        ahead = float(heading) + (np.pi if self.direction < 0 else 0.0) + self.turned_rad
        return float(x), float(y), ahead, 2 * np.pi * travelled / self.stride_m + self.start_m


@dataclass(frozen=True, slots=True)
class Ride:
    """The recording vehicle's drive: its origin is the ground point below its rear axle.

    It slows down softly after `reach_m` metres, at the end of the furnished world.
    """

    path: Curve
    start_m: float
    left_m: float
    motion: Motion
    reach_m: float
    sway_phase: np.ndarray = field(default_factory=lambda: np.zeros(4))
    """float64 [4]: phases of the body's small pitch and roll on its springs."""

    def travelled_m(self, t: np.ndarray | float) -> np.ndarray:
        """Return the distance since t = 0 s."""
        free = self.motion.distance_m(t)
        beyond = np.maximum(free - self.reach_m, 0)
        return np.minimum(free, self.reach_m) + 25 * (1 - np.exp(-beyond / 25))

    def vehicle_to_scene(self, t: np.ndarray | float) -> np.ndarray:
        """Return float64 [..., 4, 4] for times of shape [...] in seconds."""
        t = np.asarray(t, np.float64)
        travelled = self.travelled_m(t)
        x, y, heading = self.path.pose(self.start_m + travelled, self.left_m)
        lively = np.minimum(np.asarray(self.motion.speed(t)) / 5, 1)
        a, b, c, d = self.sway_phase
        pitch = lively * (0.005 * np.sin(0.9 * travelled / 2 + a) + 0.003 * np.sin(5.1 * t + b))
        roll = lively * (0.004 * np.sin(0.7 * travelled / 2 + c) + 0.003 * np.sin(4.3 * t + d))
        transform = np.zeros((*t.shape, 4, 4))
        transform[..., :3, :3] = rotation_from_euler(roll, pitch, heading)
        transform[..., 0, 3], transform[..., 1, 3], transform[..., 3, 3] = x, y, 1
        return transform

    def velocity(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Return linear (m/s) and angular (rad/s) velocity, float64 [3] each, in the scene frame."""
        step = 5e-3
        before, after = self.vehicle_to_scene(np.array([t - step, t + step]))
        spin = after[:3, :3] @ before[:3, :3].T
        angular = np.array([spin[2, 1] - spin[1, 2], spin[0, 2] - spin[2, 0], spin[1, 0] - spin[0, 1]])
        return (after[:3, 3] - before[:3, 3]) / (2 * step), angular / (4 * step)


def rotation_from_euler(roll: np.ndarray | float, pitch: np.ndarray | float, yaw: np.ndarray | float) -> np.ndarray:
    """Return Rz(yaw) Ry(pitch) Rx(roll), float64 [..., 3, 3], as Waymo's `transform_utils` defines it."""
    (cr, sr), (cp, sp), (cy, sy) = ((np.cos(a), np.sin(a)) for a in np.broadcast_arrays(roll, pitch, yaw))
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def euler_from_rotation(rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return roll, pitch and yaw (rad) of rotations [..., 3, 3]."""
    roll = np.arctan2(rotation[..., 2, 1], rotation[..., 2, 2])
    pitch = np.arcsin(np.clip(-rotation[..., 2, 0], -1, 1))
    yaw = np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return roll, pitch, yaw
