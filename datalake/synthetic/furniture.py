"""Bodies that stand still: buildings, trees, poles, signs, lights and the clutter of a sidewalk."""

from __future__ import annotations

import numpy as np

from datalake.synthetic.body import Part, Vector
from datalake.synthetic.materials import Kind, Material
from datalake.synthetic.primitives import Shape
from datalake.synthetic.vehicles import Outline

_GRAY_METAL = (0.22, 0.23, 0.24)
_FACADES = (
    (0.32, 0.13, 0.09), (0.4, 0.3, 0.2), (0.45, 0.42, 0.37), (0.25, 0.24, 0.23), (0.5, 0.45, 0.33),
    (0.2, 0.22, 0.26), (0.38, 0.22, 0.16), (0.55, 0.53, 0.5),
)  # fmt: skip
_SIGN_COLORS = (
    (0.5, 0.02, 0.02),
    (0.02, 0.06, 0.4),
    (0.65, 0.65, 0.65),
    (0.65, 0.5, 0.02),
    (0.02, 0.25, 0.08),
)

Parts = list[Part]


def building(rng: np.random.Generator, length_m: float, depth_m: float, height_m: float) -> Parts:
    """Return a house whose front faces +y at y = 0, its middle at x = 0."""
    color = _tinted(rng, _FACADES[rng.integers(len(_FACADES))])
    parts = [
        Part(
            Shape.BOX, (0, -depth_m / 2, height_m / 2), (length_m / 2, depth_m / 2, height_m / 2),
            Material.FACADE, Kind.BUILDING, color,
        ),
        Part(
            Shape.BOX, (0, -depth_m / 2, height_m + 0.15), (length_m / 2 + 0.25, depth_m / 2 + 0.25, 0.25),
            Material.PLAIN, Kind.BUILDING, _tinted(rng, (0.3, 0.29, 0.28)),
        ),
    ]  # fmt: skip
    if rng.random() < 0.45:
        awning = _tinted(rng, _SIGN_COLORS[rng.integers(len(_SIGN_COLORS))])
        half = float(rng.uniform(0.2, 0.45)) * length_m
        parts.append(Part(Shape.BOX, (0, 0.5, 3.1), (half, 0.6, 0.12), Material.PLAIN, Kind.BUILDING, awning))
    if rng.random() < 0.5:
        x = float(rng.uniform(-0.3, 0.3)) * length_m
        roof = height_m + 1.2
        parts.append(Part(Shape.BOX, (x, -depth_m / 2, roof), (1.5, 1.5, 1.2), Material.PLAIN, Kind.BUILDING, color))
    return parts


def tree(rng: np.random.Generator) -> Parts:
    """Return a broad-leaved tree, or sometimes a slim conifer."""
    height = float(rng.uniform(4.5, 10))
    green = _tinted(rng, (0.07, 0.13, 0.03) if rng.random() < 0.8 else (0.2, 0.13, 0.03))
    trunk = float(rng.uniform(0.1, 0.22))
    if rng.random() < 0.12:
        return [
            Part(Shape.CYLINDER, (0, 0, 0.6), (trunk, trunk, 0.6), Material.BARK, Kind.TRUNK, (0.11, 0.08, 0.06)),
            Part(
                Shape.SPHERE, (0, 0, 0.55 * height), (0.17 * height, 0.17 * height, 0.48 * height),
                Material.FOLIAGE, Kind.VEGETATION, green,
            ),
        ]  # fmt: skip
    parts = [
        Part(
            Shape.CYLINDER, (0, 0, 0.3 * height), (trunk, trunk, 0.3 * height),
            Material.BARK, Kind.TRUNK, (0.11, 0.08, 0.06),
        )
    ]  # fmt: skip
    for _ in range(int(rng.integers(5, 10))):
        x, y = np.clip(rng.normal(0, 0.1 * height, 2), -0.16 * height, 0.16 * height)
        z = float(rng.uniform(0.55, 0.82)) * height
        a, b, c = rng.uniform(0.09, 0.2, 3) * height
        parts.append(
            Part(
                Shape.SPHERE, (float(x), float(y), z), (float(a), float(b), float(c) * 0.8),
                Material.FOLIAGE, Kind.VEGETATION, _tinted(rng, green),
            )
        )  # fmt: skip
    return parts


def bush(rng: np.random.Generator) -> Parts:
    """Return a bush, or a short stretch of hedge."""
    green = _tinted(rng, (0.06, 0.12, 0.03))
    a, b, c = (float(v) for v in rng.uniform(0.4, 1.1, 3))
    return [Part(Shape.SPHERE, (0, 0, 0.6 * c), (1.6 * a, b, 0.9 * c), Material.FOLIAGE, Kind.VEGETATION, green)]


def street_lamp() -> Parts:
    """Return a lamp on a 6.5 m pole, its arm towards +y."""
    return [
        Part(Shape.CYLINDER, (0, 0, 3.2), (0.085, 0.085, 3.2), Material.METAL, Kind.POLE, _GRAY_METAL),
        Part(Shape.BOX, (0, 0.8, 6.4), (0.05, 0.85, 0.05), Material.METAL, Kind.POLE, _GRAY_METAL),
        Part(Shape.BOX, (0, 1.6, 6.33), (0.12, 0.3, 0.06), Material.LAMP, Kind.POLE, (0.9, 0.75, 0.5)),
    ]


def utility_pole() -> Parts:
    """Return a wooden pole with a cross-arm."""
    wood = (0.16, 0.12, 0.09)
    return [
        Part(Shape.CYLINDER, (0, 0, 4.2), (0.14, 0.14, 4.2), Material.BARK, Kind.POLE, wood),
        Part(Shape.BOX, (0, 0, 7.9), (0.06, 1.1, 0.07), Material.BARK, Kind.POLE, wood),
    ]


def sign_post(height_m: float) -> Parts:
    """Return the post below a sign."""
    return [
        Part(
            Shape.CYLINDER, (0, 0, height_m / 2), (0.035, 0.035, height_m / 2), Material.METAL, Kind.POLE, _GRAY_METAL
        )
    ]  # fmt: skip


def sign_plate(rng: np.random.Generator) -> Outline:
    """Return a sign's plate, facing +x, standing on its lower edge."""
    size = float(rng.uniform(0.32, 0.48))
    color = _tinted(rng, _SIGN_COLORS[rng.integers(len(_SIGN_COLORS))])
    if rng.random() < 0.5:
        plate = Part(
            Shape.CYLINDER, (0, 0, size), (size, size, 0.03), Material.SIGN, Kind.SIGN, color, pitch_rad=np.pi / 2
        )  # fmt: skip
    else:
        plate = Part(Shape.BOX, (0, 0, size), (0.03, size * 0.85, size), Material.SIGN, Kind.SIGN, color)
    return Outline((plate,), 0.1, 2 * size, 2 * size)


def traffic_light(state: int) -> Parts:
    """Return a traffic light that faces +x and shows red (0) or green (2)."""
    colors = [(0.05, 0.01, 0.01), (0.05, 0.04, 0.01), (0.01, 0.05, 0.02)]
    colors[state] = [(1.0, 0.05, 0.03), (1.0, 0.6, 0.05), (0.05, 1.0, 0.5)][state]
    kind = Kind.TRAFFIC_LIGHT
    black = (0.02, 0.02, 0.02)
    return [
        Part(Shape.CYLINDER, (0, 0, 1.6), (0.06, 0.06, 1.6), Material.METAL, Kind.POLE, _GRAY_METAL),
        Part(Shape.BOX, (0.08, 0, 3.1), (0.13, 0.18, 0.5), Material.PLAIN, kind, black),
        *(
            Part(Shape.SPHERE, (0.22, 0, 3.4 - 0.3 * i), (0.07, 0.1, 0.1), Material.SIGNAL, kind, colors[i])
            for i in range(3)
        ),
    ]


def clutter(rng: np.random.Generator) -> Parts:
    """Return something of a person's size that is none: bin, post box, hydrant, bollard, cone, cabinet."""
    what = int(rng.integers(6))
    color = _tinted(
        rng, ((0.05, 0.09, 0.05), (0.03, 0.06, 0.25), (0.4, 0.04, 0.03), (0.15, 0.15, 0.15))[rng.integers(4)]
    )
    kind = Kind.OBJECT
    if what == 0:
        return [
            Part(Shape.CYLINDER, (0, 0, 0.5), (0.28, 0.28, 0.5), Material.PLAIN, kind, color),
            Part(Shape.SPHERE, (0, 0, 1.0), (0.29, 0.29, 0.12), Material.PLAIN, kind, color),
        ]
    if what == 1:
        return [
            Part(Shape.BOX, (0, 0, 0.72), (0.25, 0.28, 0.55), Material.PLAIN, kind, color),
            Part(Shape.CYLINDER, (0, 0, 1.27), (0.25, 0.28, 0.25), Material.PLAIN, kind, color, pitch_rad=np.pi / 2),
        ]  # fmt: skip
    if what == 2:
        return [
            Part(Shape.CYLINDER, (0, 0, 0.35), (0.14, 0.14, 0.35), Material.PLAIN, kind, (0.5, 0.08, 0.05)),
            Part(Shape.SPHERE, (0, 0, 0.7), (0.15, 0.15, 0.14), Material.PLAIN, kind, (0.5, 0.08, 0.05)),
        ]
    if what == 3:
        return [Part(Shape.CYLINDER, (0, 0, 0.5), (0.1, 0.1, 0.5), Material.METAL, Kind.POLE, _GRAY_METAL)]
    if what == 4:
        return [
            Part(Shape.BOX, (0, 0, 0.03), (0.2, 0.2, 0.03), Material.PLAIN, Kind.CONE, (0.05, 0.05, 0.05)),
            Part(Shape.CONE, (0, 0, 0.4), (0.16, 0.16, 0.36), Material.PLAIN, Kind.CONE, (0.75, 0.16, 0.02)),
        ]
    return [Part(Shape.BOX, (0, 0, 0.8), (0.3, 0.5, 0.8), Material.PLAIN, kind, (0.3, 0.32, 0.29))]


def _tinted(rng: np.random.Generator, color: Vector) -> Vector:
    red, green, blue = np.clip(np.array(color) * rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, 3), 0.01, 0.9)
    return float(red), float(green), float(blue)
