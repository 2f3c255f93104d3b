"""Who is on the road and on the sidewalks, and where each of them goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datalake.sources.waymo_v1.protos import label_pb2
from datalake.synthetic.curve import Curve
from datalake.synthetic.layout import Junction, Layout
from datalake.synthetic.motion import STANDING, Motion, Ride, Track
from datalake.synthetic.people import cyclist, pedestrian
from datalake.synthetic.streets import LANE_M, STOP_LINE_M, Road
from datalake.synthetic.vehicles import Outline, any_vehicle


@dataclass(frozen=True, slots=True)
class Actor:
    """A labelled object: its body, its track and its `label_pb2.Label.Type`."""

    outline: Outline
    track: Track
    label_type: int


_PEDESTRIAN_SPEED = 1.3


def draw_traffic(rng: np.random.Generator, layout: Layout) -> tuple[Ride, tuple[Actor, ...]]:
    """Draw the recording vehicle's ride and everybody around it."""
    return _Traffic(rng, layout).draw()


class _Traffic:
    """One drawing of a segment's traffic.

    The ride is one of four: `cruise` along the main road, `stop` at its first junction, `go` from there, or
    `turn` there. Traffic on the other roads waits, except at a junction where the main road has to stop.
    """

    def __init__(self, rng: np.random.Generator, layout: Layout) -> None:
        self.rng, self.layout = rng, layout
        self.main = layout.streets.roads[0]
        self.junction = layout.junctions[0]
        self.ride_kind = str(rng.choice(["cruise", "stop", "go", "turn"], p=[0.45, 0.2, 0.15, 0.2]))
        self.lane = int(rng.integers(self.main.lanes))
        self.speed = float(rng.uniform(6, 12))
        self.actors: list[Actor] = []

    def draw(self) -> tuple[Ride, tuple[Actor, ...]]:
        ride = {"cruise": self._cruise, "stop": self._stop, "go": self._go, "turn": self._turn}[self.ride_kind]()
        self._oncoming()
        for junction in self.layout.junctions:
            self._cross_traffic(junction)
        for index, road in enumerate(self.layout.streets.roads):
            self._park(index, road)
            self._walk(index, road)
            self._cycle(index, road)
        signs = [Actor(plate, track, label_pb2.Label.TYPE_SIGN) for plate, track in self.layout.signs]
        return ride, (*self.actors, *signs)

    def _ride(self, path: Curve, start_m: float, left_m: float, motion: Motion, reach_m: float) -> Ride:
        return Ride(path, start_m, left_m, motion, reach_m, self.rng.uniform(0, 2 * np.pi, 4))

    def _drive(self, road: Road, forward: bool, lane: int, s: float, motion: Motion, body: Outline) -> None:
        left = road.lane_m(lane, forward) + float(self.rng.normal(0, 0.12))
        track = Track(road.curve, s, left, 1 if forward else -1, motion)
        self.actors.append(Actor(body, track, label_pb2.Label.TYPE_VEHICLE))

    def _queue(
        self, road: Road, forward: bool, lane: int, head_m: float, motion: Motion, count: int, delay_s: float = 0.0
    ) -> float:
        """Put `count` vehicles behind `head_m`, bumper to bumper; return where the next bumper may be.

        Each starts `delay_s` later than the one ahead of it.
        """
        direction, bumper = (1 if forward else -1), head_m
        for index in range(count):
            body = any_vehicle(self.rng)
            delayed = Motion(motion.start_speed, motion.end_speed, motion.change_s + index * delay_s, motion.over_s)
            self._drive(road, forward, lane, bumper - direction * body.length_m / 2, delayed, body)
            bumper -= direction * (body.length_m + float(self.rng.uniform(1.4, 3.0)))
        return bumper

    def _stream(self, road: Road, forward: bool, lane: int, start_m: float, end_m: float, motion: Motion) -> None:
        """Put moving vehicles between two positions, at random but safe distances."""
        s = start_m + float(self.rng.exponential(20))
        while s < end_m:
            body = any_vehicle(self.rng)
            self._drive(road, forward, lane, s + body.length_m / 2, motion, body)
            s += body.length_m + 8 + float(self.rng.exponential(40))

    def _stop_line(self, junction: Junction, forward: bool) -> float:
        away = self.layout.streets.roads[junction.road].half_width_m + STOP_LINE_M[1] + 0.6
        return junction.main_m - away if forward else junction.main_m + away

    def _follow(self, lane: int, bumper_m: float, motion: Motion) -> None:
        """Put vehicles behind the recording one."""
        self._stream(self.main, True, lane, bumper_m - 60, bumper_m - 14, motion)

    def _cruise(self) -> Ride:
        start = float(self.rng.uniform(-20, 60))
        motion = Motion(self.speed, self.speed * float(self.rng.uniform(0.75, 1.2)), 1.0, 6.0)
        for lane in range(self.main.lanes):
            same = lane == self.lane
            own = motion if same else Motion.steady(self.speed * float(self.rng.uniform(0.8, 1.2)))
            self._stream(self.main, True, lane, start + (9 if same else -40), 300, own)
        self._follow(self.lane, start, motion)
        return self._ride(self.main.curve, start, self.main.lane_m(self.lane, True), motion, 300 - start)

    def _stop(self) -> Ride:
        motion = Motion(self.speed, 0.0, float(self.rng.uniform(-2, 1.5)), float(self.rng.uniform(3.5, 5)))
        way = float(motion.distance_m(30.0))
        start = 0.0
        for lane in range(self.main.lanes):
            head = self._stop_line(self.junction, True) - way
            end = self._queue(self.main, True, lane, head, motion, int(self.rng.integers(0, 4)))
            if lane == self.lane:
                start = end - 3.7 - float(self.rng.uniform(1, 4))
            else:
                self._queue(self.main, True, lane, end, motion, 2)
            self._stream(self.main, True, lane, self.junction.main_m + 14, 250, Motion.steady(self.speed))
        self._follow(self.lane, start, motion)
        return self._ride(self.main.curve, start, self.main.lane_m(self.lane, True), motion, 300 - start)

    def _go(self) -> Ride:
        begin = float(self.rng.uniform(-1.5, 1))
        motion = Motion(0.0, self.speed, begin, float(self.rng.uniform(5, 7)))
        start, late = 0.0, motion
        for lane in range(self.main.lanes):
            count = int(self.rng.integers(0, 4))
            end = self._queue(self.main, True, lane, self._stop_line(self.junction, True), motion, count, 0.7)
            if lane == self.lane:
                start = end - 3.7 - float(self.rng.uniform(0.5, 2.5))
                late = Motion(0.0, self.speed, begin + 0.7 * count, motion.over_s)
        return self._ride(self.main.curve, start, self.main.lane_m(self.lane, True), late, 300 - start)

    def _turn(self) -> Ride:
        """Turn into the first junction's road, in its own direction from the main one."""
        road = self.layout.streets.roads[self.junction.road]
        right = np.sin(road.curve.heading_rad - self.main.curve.heading_rad) < 0
        self.lane = self.main.lanes - 1 if right else 0
        radius = 9.0 if right else 13.0
        lane_left, into_left = self.main.lane_m(self.lane, True), road.lane_m(0, True)
        x0, y0, h0 = (float(v) for v in self.main.curve.pose(0.0, lane_left))
        x1, y1, h1 = (float(v) for v in road.curve.pose(0.0, into_left))
        angle = float((h1 - h0 + np.pi) % (2 * np.pi) - np.pi)
        meeting = ((x1 - x0) * np.sin(h1) - (y1 - y0) * np.cos(h1)) / np.sin(h1 - h0)
        straight = float(meeting) - radius * float(np.tan(abs(angle) / 2))
        path = Curve(x0, y0, h0, straight, radius * abs(angle), float(np.sign(angle)) / radius)
        speed = float(self.rng.uniform(3.5, 5.5))
        start = straight - speed * float(self.rng.uniform(0.5, 4))
        for lane in range(self.main.lanes):
            self._stream(self.main, True, lane, self.junction.main_m + 12, 220, Motion.steady(9.0))
        self._stream(road, True, 0, 22.0, 100.0, Motion.steady(7.0))
        self._follow(self.lane, start, Motion.steady(speed))
        return self._ride(path, start, 0.0, Motion.steady(speed), straight + 70 - start)

    def _oncoming(self) -> None:
        waits = self.ride_kind in ("stop", "turn")
        for lane in range(self.main.lanes):
            own = Motion.steady(float(self.rng.uniform(6, 11)))
            if waits:
                count = int(self.rng.integers(0, 4))
                self._queue(self.main, False, lane, self._stop_line(self.junction, False), STANDING, count)
                self._stream(self.main, False, lane, -60, self.junction.main_m - 22, own)
            else:
                self._stream(self.main, False, lane, -40, 330, own)

    def _cross_traffic(self, junction: Junction) -> None:
        """Let the traffic of a side road flow where the main road stops, and wait elsewhere."""
        road = self.layout.streets.roads[junction.road]
        low, high = road.reach_m
        line = self.main.half_width_m + STOP_LINE_M[1] + 0.6
        if self.ride_kind == "stop" and junction == self.junction and not road.starts_here:
            for forward in (True, False):
                motion = Motion.steady(float(self.rng.uniform(6, 9)))
                self._stream(road, forward, 0, low, high, motion)
            return
        self._queue(road, False, 0, line, STANDING, int(self.rng.integers(0, 3)))
        leaving = Motion.steady(float(self.rng.uniform(6, 9)))
        turned_into = self.ride_kind == "turn" and junction == self.junction
        if not turned_into:
            self._stream(road, True, 0, line + 5, high, leaving)
        if not road.starts_here:
            self._queue(road, True, 0, -line, STANDING, int(self.rng.integers(0, 3)))
            self._stream(road, False, 0, low, -line - 12, leaving)

    def _is_clear(self, road: int, s: float, left: float, distance_m: float) -> bool:
        """Tell whether a place along a road keeps this distance from every other road."""
        x, y, _ = self.layout.streets.roads[road].curve.pose(s, left)
        return bool(self.layout.streets.survey(np.array([float(x)]), np.array([float(y)])).other_edge_m[0] > distance_m)

    def _park(self, index: int, road: Road) -> None:
        low, high = road.reach_m
        if not road.parking_m:
            return
        for side in (-1, 1):
            share = float(self.rng.beta(1.2, 3.0))
            left = side * (road.lanes * LANE_M + road.parking_m / 2 + 0.1)
            for s in np.arange(low + 3, high, 6.4):
                if self.rng.random() < share and self._is_clear(index, float(s), left, 9.0):
                    body = any_vehicle(self.rng, longest_m=6.2)
                    track = Track(
                        road.curve, float(s), left + float(self.rng.normal(0, 0.06)), -side,
                        turned_rad=float(self.rng.normal(0, 0.015)),
                    )  # fmt: skip
                    self.actors.append(Actor(body, track, label_pb2.Label.TYPE_VEHICLE))

    def _may_cross(self, road: int, s: float) -> bool:
        """Tell whether people on a road's sidewalk may cross the road they come to at the nearest junction."""
        red = self.ride_kind == "stop"
        if road:
            return red and road == self.junction.road
        nearest = min(self.layout.junctions, key=lambda junction: abs(junction.main_m - s))
        return nearest != self.junction or self.ride_kind in ("cruise", "go")

    def _walk(self, index: int, road: Road) -> None:
        low, high = road.reach_m
        middle = 0.0 if index else self.junction.main_m
        for side in (-1, 1):
            busy = float(self.rng.gamma(1.3, 2.0)) / 100
            for _ in range(int(self.rng.poisson(busy * (high - low)))):
                s = float(self.rng.uniform(low, high))
                away = road.half_width_m + float(self.rng.uniform(1.2, road.sidewalk_m - 0.7))
                direction = int(self.rng.choice([-1, 1]))
                if not self._may_cross(index, s):
                    if not self._is_clear(index, s, side * away, 1.0):
                        continue
                    direction = 1 if s > middle else -1
                speed = max(float(self.rng.normal(_PEDESTRIAN_SPEED, 0.25)), 0.5)
                walking = self.rng.random() < 0.75
                for beside in range(1 + int(self.rng.random() < 0.25)):
                    left = side * (away + 0.7 * beside - 0.35)
                    if walking:
                        track = Track(road.curve, s + 0.2 * beside, left, direction, Motion.steady(speed))
                    else:
                        turned = float(self.rng.uniform(-np.pi, np.pi))
                        track = Track(road.curve, s, left, turned_rad=turned)
                    self.actors.append(
                        Actor(pedestrian(self.rng, bool(walking)), track, label_pb2.Label.TYPE_PEDESTRIAN)
                    )

    def _cycle(self, index: int, road: Road) -> None:
        low, high = road.reach_m
        for side in (-1, 1):
            busy = float(self.rng.gamma(1.3, 1.3)) / 100
            for _ in range(int(self.rng.poisson(busy * (high - low)))):
                s = float(self.rng.uniform(low, high))
                gap = self.junction.main_m if not index else 0.0
                # Nobody rides into a junction where the others have to wait.
                if (index or self.ride_kind != "cruise") and abs(s - gap) < 45:
                    continue
                left = side * (road.lanes * LANE_M - 0.1)
                speed = float(self.rng.uniform(3, 6))
                track = Track(road.curve, s, left, -side, Motion.steady(speed), stride_m=4.0)
                self.actors.append(Actor(cyclist(self.rng), track, label_pb2.Label.TYPE_CYCLIST))
