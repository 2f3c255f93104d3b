"""The ground: roads and their junctions, kerbs, sidewalks, painted markings, and where rays meet them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datalake.synthetic.curve import Curve
from datalake.synthetic.materials import Kind

LANE_M = 3.4
KERB_M = 0.2
KERB_HEIGHT_M = 0.14
# Crosswalks and stop lines, by distance from the edge of the road that is crossed or joined.
CROSSWALK_M = (1.0, 3.8)
STOP_LINE_M = (5.0, 5.5)
_CORNER_RADIUS_M = 4.0


@dataclass(frozen=True, slots=True)
class Road:
    """A two-way road along `curve`, traffic on the right, `lanes` each way, perhaps with parking lanes.

    A road that `starts_here` has no ground before s = 0: it branches off another one.
    """

    curve: Curve
    lanes: int
    parking_m: float
    sidewalk_m: float
    reach_m: tuple[float, float]
    """Between which positions the world is furnished."""
    starts_here: bool = False

    @property
    def half_width_m(self) -> float:
        """From the middle of the road to its kerb."""
        return self.lanes * LANE_M + self.parking_m + 0.4

    def lane_m(self, lane: int, forward: bool) -> float:
        """Left offset of a lane's middle; lane 0 is next to the middle of the road."""
        return (-1 if forward else 1) * (lane + 0.5) * LANE_M


@dataclass(frozen=True, slots=True)
class Survey:
    """Points seen from the roads: which is nearest, and where along and across it they lie."""

    road: np.ndarray
    """int [N]: index of the nearest road."""
    edge_m: np.ndarray
    """[N]: distance from the road surface, negative on it, with rounded corners at junctions."""
    other_edge_m: np.ndarray
    """[N]: distance from the second nearest road."""
    along_m: np.ndarray
    across_m: np.ndarray


@dataclass(frozen=True, slots=True)
class Streets:
    """All roads of a scene; the first is the main one. The road surface is z = 0."""

    roads: tuple[Road, ...]

    def survey(self, x: np.ndarray, y: np.ndarray) -> Survey:
        """Locate points (float [N] each) on the roads."""
        best = Survey(np.zeros(len(x), np.int8), *(np.full(len(x), 1e3, x.dtype) for _ in range(4)))
        road, edge, other, along, across = (
            best.road,
            best.edge_m,
            best.other_edge_m,
            best.along_m,
            best.across_m,
        )
        for index, candidate in enumerate(self.roads):
            s, left = candidate.curve.locate(x, y)
            distance = np.abs(left) - candidate.half_width_m
            if candidate.starts_here:
                distance = np.maximum(distance, -s)
            nearer = distance < edge
            other = np.where(nearer, edge, np.minimum(other, distance))
            edge = np.where(nearer, distance, edge)
            road = np.where(nearer, np.int8(index), road)
            along = np.where(nearer, s, along)
            across = np.where(nearer, left, across)
        # A smooth minimum rounds the corner between two kerbs.
        blend = np.maximum(_CORNER_RADIUS_M - (other - edge), 0) / _CORNER_RADIUS_M
        rounded = np.where(edge > -_CORNER_RADIUS_M, edge - blend**2 * (_CORNER_RADIUS_M / 4), edge)
        return Survey(road, rounded, other, along, across)

    def edge_m(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the distance of points from the road surface, negative on it."""
        return self.survey(np.asarray(x, np.float64), np.asarray(y, np.float64)).edge_m

    def height_m(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the height of the ground."""
        return np.where(self.edge_m(x, y) > 0, KERB_HEIGHT_M, 0.0)

    def meet(
        self, origin: np.ndarray, direction: np.ndarray, limit_m: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Survey]:
        """Intersect N rays with the ground.

        `origin` and `direction` are float32 [3, N] in the scene frame, every direction points down, `limit_m`
        [N] is the distance of whatever else the ray meets. Returns the distance [N] in metres, the `Kind`
        [N] (int16) and the survey of the points met. Only distances below the limit mean anything.
        """
        to_top = (KERB_HEIGHT_M - origin[2]) / direction[2]
        to_road = -origin[2] / direction[2]
        top = self.survey(origin[0] + to_top * direction[0], origin[1] + to_top * direction[1])
        # Rays above the road at kerb height go on to the road, or into the face of a kerb.
        deeper = np.flatnonzero((top.edge_m < 0) & (to_top < limit_m))
        distance = to_top.copy()
        if not len(deeper):
            return distance, self._kinds(top), top
        below = self.survey(*(origin[:2, deeper] + to_road[deeper] * direction[:2, deeper]))
        distance[deeper] = to_road[deeper]
        facing = below.edge_m > 0
        rows = deeper[facing]
        distance[rows] = self._meet_kerb(
            origin[:, rows], direction[:, rows], to_top[rows], to_road[rows], top.edge_m[rows], below.edge_m[facing]
        )
        columns = {name: getattr(top, name).copy() for name in Survey.__slots__}
        for name, column in columns.items():
            column[deeper] = getattr(below, name)
        found = Survey(**columns)
        kind = self._kinds(found)
        kind[rows] = Kind.KERB
        return distance, kind, found

    def _meet_kerb(
        self,
        origin: np.ndarray,
        direction: np.ndarray,
        near: np.ndarray,
        far: np.ndarray,
        near_edge: np.ndarray,
        far_edge: np.ndarray,
    ) -> np.ndarray:
        """Return where rays cross the kerb, between `near` (on the road) and `far` (off it), by false position."""
        crossing = near
        for _ in range(4):
            crossing = near + near_edge / (near_edge - far_edge) * (far - near)
            edge = self.survey(*(origin[:2] + crossing * direction[:2])).edge_m
            on_road = edge < 0
            near, near_edge = np.where(on_road, crossing, near), np.where(on_road, edge, near_edge)
            far, far_edge = np.where(on_road, far, crossing), np.where(on_road, far_edge, np.maximum(edge, 1e-6))
        return crossing

    def _kinds(self, at: Survey) -> np.ndarray:
        sidewalk = np.array([road.sidewalk_m for road in self.roads], at.edge_m.dtype)[at.road]
        kind = np.full(len(at.edge_m), Kind.YARD, np.int16)
        kind[at.edge_m < sidewalk] = Kind.SIDEWALK
        kind[at.edge_m < KERB_M] = Kind.KERB
        on_road = np.flatnonzero(at.edge_m < 0)
        kind[on_road] = self._markings(
            at.road[on_road], at.other_edge_m[on_road], at.along_m[on_road], at.across_m[on_road]
        )
        return kind

    def _markings(self, road: np.ndarray, clear: np.ndarray, along: np.ndarray, across: np.ndarray) -> np.ndarray:
        """Return ROAD, WHITE_PAINT or YELLOW_PAINT for points on a road, `clear` metres from any other."""
        lanes = np.array([r.lanes for r in self.roads])[road]
        parking = np.array([r.parking_m for r in self.roads], across.dtype)[road]
        outer = np.abs(across)
        open_road = clear > STOP_LINE_M[1]
        yellow = open_road & (outer > 0.08) & (outer < 0.22)
        lane = outer / LANE_M
        whole = np.rint(lane)
        near_line = np.abs(lane - whole) * LANE_M < 0.07
        dashed = near_line & (whole >= 1) & (whole < lanes) & (along % 9 < 3.2)
        bay = (outer > lanes * LANE_M) & (parking > 0) & (along % 6 < 0.12)
        edge_line = near_line & (whole == lanes) & (parking > 0)
        zebra = (clear > CROSSWALK_M[0]) & (clear < CROSSWALK_M[1]) & (across % 1.2 < 0.6)
        stop = (clear > STOP_LINE_M[0]) & (clear <= STOP_LINE_M[1]) & (outer > 0.3) & (outer < lanes * LANE_M)
        white = zebra | stop | (open_road & (dashed | bay | edge_line))
        kind = np.full(len(road), Kind.ROAD, np.int16)
        kind[white] = Kind.WHITE_PAINT
        kind[yellow] = Kind.YELLOW_PAINT
        return kind
