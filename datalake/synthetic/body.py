"""Parts and the bodies made of them, before they are placed in a scene."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from datalake.synthetic.materials import Kind, Material
from datalake.synthetic.primitives import Primitives, Shape

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Part:
    """One solid of a body, in the body's frame: x forward, y left, z up, origin on the ground below it.

    `pitch_rad` turns it about y, then `roll_rad` about its own x. A limb swings about y by
    `swing_rad * sin(phase)`, hinged at height `hinge_m` above its own center's x and y.
    """

    shape: Shape
    center: Vector
    half_size: Vector
    material: Material
    kind: Kind
    color: Vector
    pitch_rad: float = 0.0
    roll_rad: float = 0.0
    swing_rad: float = 0.0
    hinge_m: float = 0.0


@dataclass(frozen=True, slots=True)
class Limbs:
    """The parts of many bodies as arrays, ready to be placed again and again.

    `body` int [P] is the body each part belongs to; `primitives` stand in the bodies' own frames.
    """

    primitives: Primitives
    body: np.ndarray
    swing_rad: np.ndarray
    hinge_m: np.ndarray

    @staticmethod
    def collect(bodies: Sequence[Iterable[Part]], instances: Sequence[int] | np.ndarray) -> Limbs:
        """Stack the parts of all bodies; `instances` numbers the bodies."""
        rows = [(index, part) for index, parts in enumerate(bodies) for part in parts]
        body = np.array([index for index, _ in rows], np.int64)
        parts = [part for _, part in rows]
        pitch = np.array([part.pitch_rad for part in parts])
        roll = np.array([part.roll_rad for part in parts])
        primitives = Primitives(
            shape=np.array([part.shape for part in parts], np.int8),
            center=np.array([part.center for part in parts], np.float64).reshape(-1, 3),
            rotation=_about_y(pitch) @ _about_x(roll),
            half_size=np.array([part.half_size for part in parts], np.float64).reshape(-1, 3),
            material=np.array([part.material for part in parts], np.int16),
            kind=np.array([part.kind for part in parts], np.int16),
            color=np.array([part.color for part in parts], np.float32).reshape(-1, 3),
            instance=np.asarray(instances, np.int32)[body],
            salt=(np.arange(len(parts)) * 7919 % 997).astype(np.int32),
        )
        swing = np.array([part.swing_rad for part in parts])
        return Limbs(primitives, body, swing, np.array([part.hinge_m for part in parts]))

    def place(self, position: np.ndarray, heading: np.ndarray, phase: np.ndarray) -> Primitives:
        """Return the solids in the scene frame.

        `position` [B, 3] in metres, `heading` [B] and gait `phase` [B] in radians are those of the bodies.
        """
        solids = self.primitives
        swung = _about_y(self.swing_rad * np.sin(phase[self.body]))
        hinge = solids.center.copy()
        hinge[:, 2] = self.hinge_m
        center = hinge + np.einsum("pij,pj->pi", swung, solids.center - hinge)
        turned = about_z(heading[self.body])
        return Primitives(
            shape=solids.shape,
            center=position[self.body] + np.einsum("pij,pj->pi", turned, center),
            rotation=turned @ swung @ solids.rotation,
            half_size=solids.half_size,
            material=solids.material,
            kind=solids.kind,
            color=solids.color,
            instance=solids.instance,
            salt=solids.salt,
        )


def _rotations(angle: np.ndarray, first: int, second: int) -> np.ndarray:
    matrix = np.tile(np.eye(3), (len(angle), 1, 1))
    matrix[:, first, first] = matrix[:, second, second] = np.cos(angle)
    matrix[:, second, first] = np.sin(angle)
    matrix[:, first, second] = -np.sin(angle)
    return matrix


def about_z(angle: np.ndarray) -> np.ndarray:
    """Return float64 [N, 3, 3]: rotations by yaw angles (rad), x towards y."""
    return _rotations(angle, 0, 1)


def _about_y(angle: np.ndarray) -> np.ndarray:
    return _rotations(angle, 2, 0)


def _about_x(angle: np.ndarray) -> np.ndarray:
    return _rotations(angle, 1, 2)
