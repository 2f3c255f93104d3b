"""A plane curve of a straight, a circular arc and a straight: roads, lanes and paths are made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Curve:
    """Starts at (`x_m`, `y_m`) in the direction `heading_rad`; both straights go on for ever.

    Positions are (s, l): metres along the curve and metres to its left.
    """

    x_m: float
    y_m: float
    heading_rad: float
    straight_m: float = 0.0
    arc_m: float = 0.0
    curvature: float = 0.0
    """1/m, positive to the left, 0 for a straight line."""

    def pose(self, s: np.ndarray | float, left: np.ndarray | float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return x, y (m) and heading (rad), float64 of the broadcast shape of `s` and `left`."""
        first = np.minimum(s, self.straight_m if self.curvature else np.inf)
        turned = np.clip(np.asarray(s, np.float64) - first, 0, self.arc_m)
        last = s - first - turned
        angle = self.curvature * turned
        if self.curvature:
            u = first + np.sin(angle) / self.curvature + last * np.cos(angle)
            v = (1 - np.cos(angle)) / self.curvature + last * np.sin(angle)
        else:
            u, v = first, np.zeros_like(angle)
        u, v = u - left * np.sin(angle), v + left * np.cos(angle)
        cos, sin = np.cos(self.heading_rad), np.sin(self.heading_rad)
        return self.x_m + cos * u - sin * v, self.y_m + sin * u + cos * v, self.heading_rad + angle

    def locate(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (s, l) of points: exact near the curve, continuous for as far as the arc's center."""
        cos, sin = np.cos(self.heading_rad), np.sin(self.heading_rad)
        # Python floats keep float32 points in float32.
        u = (x - self.x_m) * float(cos) + (y - self.y_m) * float(sin)
        v = (y - self.y_m) * float(cos) - (x - self.x_m) * float(sin)
        if not self.curvature:
            return u, v
        s, left = u.copy(), v.copy()
        angle = self.curvature * self.arc_m
        end_u = self.straight_m + np.sin(angle) / self.curvature
        end_v = (1 - np.cos(angle)) / self.curvature
        along = (u - end_u) * float(np.cos(angle)) + (v - end_v) * float(np.sin(angle))
        bent = np.flatnonzero((u > self.straight_m) & (along <= 0))
        sign = float(np.sign(self.curvature))
        radius = 1 / abs(self.curvature)
        du, dv = u.flat[bent] - self.straight_m, radius - sign * v.flat[bent]
        s.flat[bent] = self.straight_m + radius * np.arctan2(du, dv)
        left.flat[bent] = sign * (radius - np.hypot(du, dv))
        straight = np.flatnonzero((u > self.straight_m) & (along > 0))
        s.flat[straight] = self.straight_m + self.arc_m + along.flat[straight]
        across = (v.flat[straight] - end_v) * float(np.cos(angle))
        left.flat[straight] = across - (u.flat[straight] - end_u) * float(np.sin(angle))
        return s, left
