"""Where streets run and what stands along them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datalake.synthetic import furniture
from datalake.synthetic.body import Limbs, Part
from datalake.synthetic.curve import Curve
from datalake.synthetic.motion import Track
from datalake.synthetic.people import bicycle
from datalake.synthetic.primitives import Primitives
from datalake.synthetic.streets import Road, Streets
from datalake.synthetic.vehicles import Outline

_MAIN_REACH_M = (-70.0, 360.0)
_CROSS_REACH_M = (-115.0, 115.0)


@dataclass(frozen=True, slots=True)
class Junction:
    """Where road number `road` meets the main one, at `main_m` along it."""

    road: int
    main_m: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Streets, their junctions, and everything that never moves."""

    streets: Streets
    junctions: tuple[Junction, ...]
    solids: Primitives
    lamps: np.ndarray
    """float64 [L, 3]: where street lamps shine, in the scene frame."""
    signs: tuple[tuple[Outline, Track], ...]


def draw_streets(rng: np.random.Generator) -> tuple[Streets, tuple[Junction, ...]]:
    """Draw a main road, straight or bent, and one to three roads that cross or join it."""
    first = float(rng.uniform(35, 75))
    straight = first + float(rng.uniform(25, 70))
    curvature, arc = 0.0, 0.0
    if rng.random() < 0.65:
        radius, angle = float(rng.uniform(50, 180)), float(rng.uniform(0.3, 1.1))
        curvature, arc = float(rng.choice([-1, 1])) / radius, radius * angle
    main = Road(
        Curve(0.0, 0.0, float(rng.uniform(-np.pi, np.pi)), straight, arc, curvature),
        lanes=int(rng.choice([1, 2], p=[0.6, 0.4])),
        parking_m=float(rng.choice([0.0, 2.2], p=[0.3, 0.7])),
        sidewalk_m=float(rng.uniform(3.0, 4.8)),
        reach_m=_MAIN_REACH_M,
    )
    places = [first]
    if rng.random() < 0.7:
        places.append(straight + arc + float(rng.uniform(25, 60)))
    roads, junctions = [main], []
    for place in places:
        x, y, heading = main.curve.pose(place, 0.0)
        side = float(rng.choice([-1, 1]))
        turn = side * np.pi / 2 + float(rng.uniform(-0.12, 0.12))
        ends = bool(rng.random() < 0.35)
        junctions.append(Junction(len(roads), place))
        roads.append(
            Road(
                Curve(float(x), float(y), float(heading) + turn),
                lanes=1,
                parking_m=float(rng.choice([0.0, 2.2])),
                sidewalk_m=float(rng.uniform(2.6, 4.0)),
                reach_m=(0.0 if ends else _CROSS_REACH_M[0], _CROSS_REACH_M[1]),
                starts_here=ends,
            )
        )
    return Streets(tuple(roads)), tuple(junctions)


def draw_layout(rng: np.random.Generator) -> Layout:
    """Draw streets and everything that stands along them."""
    streets, junctions = draw_streets(rng)
    site = _Site(rng, streets)
    for road in streets.roads:
        for side in (-1, 1):
            site.build_houses(road, side)
            site.furnish(road, side)
    site.close_views()
    site.put_traffic_lights(junctions)
    return Layout(streets, junctions, site.solids(), np.array(site.lamps).reshape(-1, 3), tuple(site.signs))


class _Site:
    """Collects what is built, and knows where there is still room."""

    def __init__(self, rng: np.random.Generator, streets: Streets) -> None:
        self.rng, self.streets = rng, streets
        self.bodies: list[list[Part]] = []
        self.poses: list[tuple[float, float, float]] = []
        self.footprints: list[tuple[float, float, float, float, float]] = []
        self.lamps: list[tuple[float, float, float]] = []
        self.signs: list[tuple[Outline, Track]] = []
        self.style = float(rng.uniform(0, 1))

    def solids(self) -> Primitives:
        """Return all parts, placed on the ground."""
        limbs = Limbs.collect(self.bodies, np.zeros(len(self.bodies), np.int32))
        x, y, heading = np.array(self.poses).T
        position = np.stack([x, y, self.streets.height_m(x, y)], 1)
        return limbs.place(position, heading, np.zeros(len(x)))

    def put(self, body: list[Part], x: float, y: float, heading: float) -> None:
        self.bodies.append(body)
        self.poses.append((float(x), float(y), float(heading)))

    def is_free(self, x: float, y: float, heading: float, length: float, depth: float, clear_m: float) -> bool:
        """Tell whether a footprint (front middle at x, y, facing +y) keeps off streets and houses."""
        u, v = (a.ravel() for a in np.meshgrid(np.linspace(-length / 2, length / 2, 7), np.linspace(-depth, 0, 4)))
        px = x + np.cos(heading) * u - np.sin(heading) * v
        py = y + np.sin(heading) * u + np.cos(heading) * v
        if (self.streets.edge_m(px, py) < clear_m).any():
            return False
        for ox, oy, angle, other_length, other_depth in self.footprints:
            if np.hypot(px.mean() - ox, py.mean() - oy) > length + depth + other_length + other_depth:
                continue
            a = (px - ox) * np.cos(angle) + (py - oy) * np.sin(angle)
            b = (py - oy) * np.cos(angle) - (px - ox) * np.sin(angle)
            if ((np.abs(a) < other_length / 2 + 0.5) & (b > -other_depth - 0.5) & (b < 0.5)).any():
                return False
        return True

    def build_houses(self, road: Road, side: int) -> None:
        rng = self.rng
        s = road.reach_m[0] + float(rng.uniform(0, 8))
        while s < road.reach_m[1]:
            length, depth = float(rng.uniform(9, 26)), float(rng.uniform(9, 14))
            height = float(rng.uniform(5, 11) if rng.random() > self.style else rng.uniform(11, 30))
            setback = float(rng.choice([0.3, rng.uniform(1, 5)]))
            left = side * (road.half_width_m + road.sidewalk_m + setback)
            x, y, heading = (float(v) for v in road.curve.pose(s + length / 2, left))
            facing = heading + (np.pi if side > 0 else 0.0)
            if rng.random() < 0.84 and self.is_free(x, y, facing, length, depth, road.sidewalk_m):
                self.footprints.append((x, y, facing, length, depth))
                self.put(furniture.building(rng, length, depth, height), x, y, facing)
            else:
                self.plant(road, side, s, s + length)
            s += length + float(rng.choice([0.2, 0.2, rng.uniform(2, 7)]))

    def plant(self, road: Road, side: int, start_m: float, end_m: float) -> None:
        """Fill a gap between houses with trees and bushes."""
        for _ in range(int(self.rng.integers(3, 8))):
            away = road.half_width_m + road.sidewalk_m + float(self.rng.uniform(1.2, 12))
            x, y, _ = (float(v) for v in road.curve.pose(float(self.rng.uniform(start_m, end_m)), side * away))
            if self.is_free(x, y, 0.0, 1.5, 1.5, road.sidewalk_m + 0.5):
                body = furniture.tree(self.rng) if self.rng.random() < 0.5 else furniture.bush(self.rng)
                self.put(body, x, y, float(self.rng.uniform(0, np.pi)))

    def furnish(self, road: Road, side: int) -> None:
        """Line a sidewalk's kerb with trees, lamps, poles, signs and clutter."""
        rng = self.rng
        leafy = float(rng.uniform(0.1, 0.5))
        s, next_lamp = road.reach_m[0], road.reach_m[0] + float(rng.uniform(0, 25))
        while s < road.reach_m[1]:
            s += float(rng.uniform(3, 9))
            left = side * (road.half_width_m + 0.65)
            x, y, heading = (float(v) for v in road.curve.pose(s, left))
            if float(self.streets.edge_m(np.array([x]), np.array([y]))[0]) < 0.45:
                continue
            facing = heading + (np.pi if side > 0 else 0.0)
            chance = rng.random()
            if s > next_lamp:
                next_lamp = s + float(rng.uniform(24, 34))
                self.put(furniture.street_lamp(), x, y, facing)
                self.lamps.append((x - 1.6 * float(np.sin(facing)), y + 1.6 * float(np.cos(facing)), 6.3))
            elif chance < leafy:
                self.put(furniture.tree(rng), x, y, float(rng.uniform(0, np.pi)))
            elif chance < leafy + 0.2:
                self.put(furniture.clutter(rng), x, y, facing + np.pi / 2)
            elif chance < leafy + 0.24:
                self.put(furniture.utility_pole(), x, y, facing)
            elif chance < leafy + 0.3:
                self.put(list(bicycle(rng).parts), x, y, heading + float(rng.uniform(-0.3, 0.3)))
            elif chance < leafy + 0.42:
                self._put_sign(road, side, s, left)
            if rng.random() < 0.12:
                away = side * (road.half_width_m + road.sidewalk_m - 0.35)
                x, y, heading = (float(v) for v in road.curve.pose(s, away))
                if float(self.streets.edge_m(np.array([x]), np.array([y]))[0]) > road.sidewalk_m - 1:
                    self.put(furniture.clutter(rng), x, y, heading + (-np.pi / 2 if side > 0 else np.pi / 2))

    def _put_sign(self, road: Road, side: int, s: float, left: float) -> None:
        """Put up a sign that faces the traffic on its side of the road."""
        height = float(self.rng.uniform(1.9, 2.4))
        plate = furniture.sign_plate(self.rng)
        x, y, heading = (float(v) for v in road.curve.pose(s, left))
        self.put(furniture.sign_post(height + plate.height_m / 2), x, y, heading)
        # Traffic on the right side drives along the road and meets the plate's face.
        turned = np.pi if side < 0 else 0.0
        self.signs.append((plate, Track(road.curve, s, left, turned_rad=turned, raised_m=height)))

    def close_views(self) -> None:
        """Put a house across the far ends of every road, so that no view runs to the horizon."""
        for road in self.streets.roads:
            low, high = road.reach_m
            ends = [(high + 45, -1)] if road.starts_here else [(high + 45, -1), (low - 45, 1)]
            for s, direction in ends:
                x, y, heading = (float(v) for v in road.curve.pose(s, 0.0))
                facing = heading + (np.pi / 2 if direction < 0 else -np.pi / 2)
                height = float(self.rng.uniform(8, 25))
                self.put(furniture.building(self.rng, 55.0, 12.0, height), x, y, facing)

    def put_traffic_lights(self, junctions: tuple[Junction, ...]) -> None:
        """Put a light at the far right corner of each approach on the main road."""
        main = self.streets.roads[0]
        for junction in junctions:
            beyond = self.streets.roads[junction.road].half_width_m + 3.0
            state = int(self.rng.choice([0, 2]))
            for direction in (1, -1):
                left = -direction * (main.half_width_m + 0.7)
                s = junction.main_m + direction * beyond
                x, y, heading = (float(v) for v in main.curve.pose(s, left))
                if float(self.streets.edge_m(np.array([x]), np.array([y]))[0]) > 0.3:
                    facing = heading + (np.pi if direction > 0 else 0.0)
                    self.put(furniture.traffic_light(state), x, y, facing)
