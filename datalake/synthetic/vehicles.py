"""Bodies of cars, vans, trucks and buses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from datalake.synthetic.body import Part, Vector
from datalake.synthetic.materials import Kind, Material
from datalake.synthetic.primitives import Shape

_PAINTS = (
    (0.75, 0.75, 0.74), (0.55, 0.56, 0.58), (0.03, 0.03, 0.035), (0.12, 0.125, 0.13), (0.25, 0.26, 0.28),
    (0.4, 0.03, 0.03), (0.04, 0.09, 0.3), (0.02, 0.03, 0.08), (0.36, 0.32, 0.25), (0.05, 0.13, 0.08),
    (0.5, 0.2, 0.04), (0.8, 0.8, 0.8), (0.1, 0.09, 0.08), (0.3, 0.31, 0.33),
)  # fmt: skip
_RUBBER = (0.015, 0.015, 0.016)
_TRIM = (0.03, 0.03, 0.032)


@dataclass(frozen=True, slots=True)
class Outline:
    """A body with the size of its box: `length_m` along x, `width_m` along y, centered on the body's origin."""

    parts: tuple[Part, ...]
    length_m: float
    width_m: float
    height_m: float


def _paint(rng: np.random.Generator) -> Vector:
    base = np.array(_PAINTS[rng.integers(len(_PAINTS))])
    red, green, blue = np.clip(base * rng.uniform(0.8, 1.15) + rng.normal(0, 0.008, 3), 0.01, 0.9)
    return float(red), float(green), float(blue)


def _wheels(kind: Kind, axles: tuple[float, ...], half_track_m: float, radius_m: float) -> list[Part]:
    return [
        Part(
            Shape.CYLINDER, (axle, side * half_track_m, radius_m), (radius_m, radius_m, 0.11),
            Material.TYRE, kind, _RUBBER, roll_rad=np.pi / 2,
        )
        for axle in axles
        for side in (-1, 1)
    ]  # fmt: skip


def car(rng: np.random.Generator) -> Outline:
    """Return a hatchback, saloon, estate, off-roader or pick-up."""
    length, width = rng.uniform(3.9, 4.9), rng.uniform(1.72, 1.95)
    height = rng.choice([rng.uniform(1.42, 1.52), rng.uniform(1.6, 1.85)])
    paint, wheel = _paint(rng), 0.31 + 0.05 * (height > 1.55)
    style = rng.choice(["hatchback", "saloon", "estate", "pickup"])
    back, front = {"hatchback": (-0.47, 0.2), "saloon": (-0.34, 0.2), "estate": (-0.49, 0.22), "pickup": (-0.1, 0.24)}[
        str(style)
    ]  # fmt: skip
    belt = 0.58 * height
    parts = [
        Part(
            Shape.BOX, (0, 0, (0.2 + belt) / 2), (length / 2, width / 2, (belt - 0.2) / 2),
            Material.PAINT, Kind.CAR, paint,
        ),
        Part(
            Shape.TAPER, ((back + front) / 2 * length, 0, (belt + height) / 2),
            ((front - back) / 2 * length, width * 0.47, (height - belt) / 2), Material.CABIN, Kind.CAR, paint,
        ),
        *_wheels(Kind.CAR, (-0.3 * length, 0.31 * length), width / 2 - 0.1, wheel),
    ]  # fmt: skip
    return Outline(tuple(parts), length, width, height)


def van(rng: np.random.Generator) -> Outline:
    """Return a delivery van."""
    length, width, height = rng.uniform(5.0, 6.2), rng.uniform(1.95, 2.1), rng.uniform(2.1, 2.6)
    paint = _paint(rng)
    parts = [
        Part(
            Shape.BOX, (-0.12 * length, 0, (0.28 + height) / 2), (0.38 * length, width / 2, (height - 0.28) / 2),
            Material.PAINT, Kind.CAR, paint,
        ),
        Part(Shape.BOX, (0.38 * length, 0, 0.7), (0.12 * length, width / 2, 0.42), Material.PAINT, Kind.CAR, paint),
        Part(
            Shape.TAPER, (0.27 * length, 0, (1.1 + height) / 2), (0.2 * length, width * 0.485, (height - 1.1) / 2),
            Material.CABIN, Kind.CAR, paint,
        ),
        *_wheels(Kind.CAR, (-0.3 * length, 0.32 * length), width / 2 - 0.1, 0.35),
    ]  # fmt: skip
    return Outline(tuple(parts), length, width, height)


def truck(rng: np.random.Generator) -> Outline:
    """Return a box truck."""
    length, width, height = rng.uniform(7, 10), rng.uniform(2.35, 2.55), rng.uniform(3.1, 3.8)
    cab = 2.0
    paint = _paint(rng)
    cargo = paint if rng.random() < 0.3 else (0.7, 0.7, 0.68)
    parts = [
        Part(
            Shape.BOX, (-cab / 2, 0, (0.95 + height) / 2), ((length - cab) / 2 - 0.1, width / 2, (height - 0.95) / 2),
            Material.PLAIN, Kind.TRUCK, cargo,
        ),
        Part(Shape.BOX, (-cab / 2, 0, 0.75), ((length - cab) / 2, width * 0.4, 0.2), Material.PAINT, Kind.TRUCK, _TRIM),
        Part(Shape.BOX, ((length - cab) / 2, 0, 1.0), (cab / 2, width * 0.48, 0.6), Material.PAINT, Kind.TRUCK, paint),
        Part(
            Shape.TAPER, ((length - cab) / 2 - 0.05, 0, 2.1), (cab / 2 - 0.05, width * 0.47, 0.55),
            Material.CABIN, Kind.TRUCK, paint,
        ),
        *_wheels(Kind.TRUCK, (-0.33 * length, -0.2 * length, 0.36 * length), width / 2 - 0.14, 0.47),
    ]  # fmt: skip
    return Outline(tuple(parts), length, width, height)


def bus(rng: np.random.Generator) -> Outline:
    """Return a city bus."""
    length, width, height = rng.uniform(10.5, 12.5), 2.55, rng.uniform(2.95, 3.2)
    paint = _paint(rng)
    parts = [
        Part(
            Shape.BOX, (0, 0, (0.35 + height) / 2), (length / 2, width / 2, (height - 0.35) / 2),
            Material.COACH, Kind.BUS, paint,
        ),
        *_wheels(Kind.BUS, (-0.27 * length, 0.3 * length), width / 2 - 0.12, 0.48),
    ]  # fmt: skip
    return Outline(tuple(parts), length, width, height)


_FLEET: tuple[tuple[Callable[[np.random.Generator], Outline], float], ...] = (
    (car, 0.8), (van, 0.11), (truck, 0.05), (bus, 0.04),
)  # fmt: skip


def any_vehicle(rng: np.random.Generator, longest_m: float = 20.0) -> Outline:
    """Return a random vehicle of a city's mix, at most `longest_m` long."""
    while True:
        make = _FLEET[int(rng.choice(len(_FLEET), p=[share for _, share in _FLEET]))][0]
        outline = make(rng)
        if outline.length_m <= longest_m:
            return outline
