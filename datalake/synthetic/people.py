"""Bodies of pedestrians, cyclists and bicycles."""

from __future__ import annotations

import numpy as np

from datalake.synthetic.body import Part, Vector
from datalake.synthetic.materials import Kind, Material
from datalake.synthetic.primitives import Shape
from datalake.synthetic.vehicles import Outline

_SKINS = ((0.55, 0.36, 0.26), (0.4, 0.24, 0.16), (0.2, 0.11, 0.07), (0.62, 0.43, 0.33))
_CLOTHES = (
    (0.02, 0.02, 0.025), (0.05, 0.07, 0.15), (0.25, 0.25, 0.26), (0.5, 0.48, 0.44), (0.35, 0.05, 0.05),
    (0.1, 0.16, 0.1), (0.5, 0.38, 0.08), (0.1, 0.2, 0.35), (0.28, 0.18, 0.1), (0.6, 0.25, 0.3),
)  # fmt: skip


def _clothes(rng: np.random.Generator) -> Vector:
    red, green, blue = np.clip(np.array(_CLOTHES[rng.integers(len(_CLOTHES))]) * rng.uniform(0.7, 1.3), 0.01, 0.8)
    return float(red), float(green), float(blue)


def pedestrian(rng: np.random.Generator, walking: bool) -> Outline:
    """Return an adult or a child, whose limbs swing where `walking`."""
    size = float(rng.uniform(0.62, 0.78) if rng.random() < 0.12 else rng.normal(1.0, 0.055))
    stout = float(rng.uniform(0.85, 1.2))
    shirt, trousers, skin = _clothes(rng), _clothes(rng), _SKINS[rng.integers(len(_SKINS))]
    hair = (0.03, 0.022, 0.016) if rng.random() < 0.7 else (0.25, 0.17, 0.08)
    stride, reach = (0.45, 0.4) if walking else (0.05, 0.04)

    def part(
        shape: Shape,
        center: Vector,
        half: Vector,
        material: Material,
        color: Vector,
        swing: float = 0,
        hinge: float = 0,
    ) -> Part:
        x, y, z = (size * value for value in center)
        a, b, c = (size * value for value in half)
        return Part(
            shape, (x, y, z), (a, b, c), material, Kind.PEDESTRIAN, color, swing_rad=swing, hinge_m=size * hinge
        )  # fmt: skip

    leg = (0.085 * stout, 0.08 * stout, 0.44)
    parts = [
        part(Shape.CYLINDER, (0, 0.09, 0.44), leg, Material.CLOTH, trousers, stride, 0.88),
        part(Shape.CYLINDER, (0, -0.09, 0.44), leg, Material.CLOTH, trousers, -stride, 0.88),
        part(Shape.SPHERE, (0, 0, 1.17), (0.155 * stout, 0.225 * stout, 0.36), Material.CLOTH, shirt),
        part(Shape.SPHERE, (0, 0.26 * stout, 1.14), (0.06, 0.058, 0.34), Material.CLOTH, shirt, -reach, 1.42),
        part(Shape.SPHERE, (0, -0.26 * stout, 1.14), (0.06, 0.058, 0.34), Material.CLOTH, shirt, reach, 1.42),
        part(Shape.SPHERE, (0.015, 0, 1.62), (0.1, 0.085, 0.13), Material.SKIN, skin),
        part(Shape.SPHERE, (-0.02, 0, 1.665), (0.1, 0.095, 0.11), Material.CLOTH, hair),
    ]  # fmt: skip
    if rng.random() < 0.35:
        parts.append(part(Shape.BOX, (-0.2, 0, 1.22), (0.09, 0.15, 0.22), Material.CLOTH, _clothes(rng)))
    return Outline(tuple(parts), 1.0 * size, 0.75 * size * max(stout, 1), 1.79 * size)


def _frame(kind: Kind, color: Vector) -> list[Part]:
    """Parts of a bicycle: wheels of 0.34 m radius, tubes, saddle and handlebar."""
    wheel = (0.34, 0.34, 0.025)
    return [
        Part(Shape.CYLINDER, (-0.52, 0, 0.34), wheel, Material.SPOKES, kind, (0.03, 0.03, 0.03), roll_rad=np.pi / 2),
        Part(Shape.CYLINDER, (0.52, 0, 0.34), wheel, Material.SPOKES, kind, (0.03, 0.03, 0.03), roll_rad=np.pi / 2),
        Part(Shape.BOX, (0.12, 0, 0.55), (0.36, 0.025, 0.03), Material.METAL, kind, color, pitch_rad=-0.65),
        Part(Shape.BOX, (0.08, 0, 0.8), (0.36, 0.025, 0.025), Material.METAL, kind, color),
        Part(Shape.BOX, (-0.2, 0, 0.6), (0.03, 0.025, 0.33), Material.METAL, kind, color, pitch_rad=-0.2),
        Part(Shape.BOX, (0.48, 0, 0.66), (0.03, 0.025, 0.36), Material.METAL, kind, color, pitch_rad=-0.25),
        Part(Shape.BOX, (0.42, 0, 1.02), (0.03, 0.28, 0.025), Material.METAL, kind, (0.03, 0.03, 0.03)),
        Part(Shape.BOX, (-0.27, 0, 0.95), (0.13, 0.06, 0.03), Material.CLOTH, kind, (0.03, 0.03, 0.03)),
    ]  # fmt: skip


def bicycle(rng: np.random.Generator) -> Outline:
    """Return a bicycle without a rider."""
    return Outline(tuple(_frame(Kind.BICYCLE, _clothes(rng))), 1.75, 0.6, 1.1)


def cyclist(rng: np.random.Generator) -> Outline:
    """Return a bicycle and its rider, one object."""
    shirt, trousers, skin = _clothes(rng), _clothes(rng), _SKINS[rng.integers(len(_SKINS))]
    helmet = _clothes(rng)
    kind = Kind.CYCLIST
    parts = [
        *_frame(kind, _clothes(rng)),
        Part(Shape.SPHERE, (-0.08, 0, 1.26), (0.15, 0.2, 0.36), Material.CLOTH, kind, shirt, pitch_rad=0.5),
        Part(Shape.SPHERE, (0.14, 0, 1.66), (0.11, 0.09, 0.13), Material.SKIN, kind, skin),
        Part(Shape.SPHERE, (0.12, 0, 1.73), (0.13, 0.1, 0.09), Material.CLOTH, kind, helmet),
    ]
    for side in (-1, 1):
        parts += [
            Part(
                Shape.SPHERE, (-0.1, side * 0.1, 0.66), (0.085, 0.08, 0.42), Material.CLOTH, kind, trousers,
                pitch_rad=-0.25, swing_rad=side * 0.35, hinge_m=1.0,
            ),
            Part(
                Shape.SPHERE, (0.2, side * 0.22, 1.22), (0.055, 0.055, 0.32), Material.CLOTH, kind, shirt,
                pitch_rad=-0.85,
            ),
        ]  # fmt: skip
    return Outline(tuple(parts), 1.8, 0.75, 1.83)
