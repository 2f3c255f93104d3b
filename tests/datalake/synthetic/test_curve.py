from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datalake.synthetic.curve import Curve


@given(
    st.floats(-300, 300),
    st.floats(-15, 15),
    st.floats(-3, 3),
    st.sampled_from([-1 / 40, 0.0, 1 / 120]),
    st.floats(5, 60),
)
def test_locating_a_pose_gives_its_position_back(
    s: float, left: float, heading: float, curvature: float, arc: float
) -> None:
    curve = Curve(12.0, -7.0, heading, 30.0, arc if curvature else 0.0, curvature)
    x, y, _ = curve.pose(s, left)
    found_s, found_left = curve.locate(np.array([float(x)]), np.array([float(y)]))
    assert abs(found_s[0] - s) < 1e-6
    assert abs(found_left[0] - left) < 1e-6


def test_heading_is_the_tangent() -> None:
    curve = Curve(3.0, 4.0, 0.5, 10.0, 25.0, -1 / 30)
    s = np.linspace(-5, 60, 200)
    x, y, heading = curve.pose(s, 2.0)
    ahead_x, ahead_y, _ = curve.pose(s + 1e-5, 2.0)
    difference = np.arctan2(ahead_y - y, ahead_x - x) - heading
    assert np.abs((difference + np.pi) % (2 * np.pi) - np.pi).max() < 1e-4
