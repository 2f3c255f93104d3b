from __future__ import annotations

import numpy as np

from datalake.synthetic.layout import draw_streets
from datalake.synthetic.materials import Kind


def test_rays_meet_the_ground_at_its_height() -> None:
    rng = np.random.default_rng(3)
    streets, _ = draw_streets(rng)
    target = np.stack([rng.uniform(-60, 200, 4000), rng.uniform(-60, 60, 4000), np.zeros(4000)])
    origin = np.array([[20.0], [3.0], [2.0]])
    direction = (target - origin) / np.linalg.norm(target - origin, axis=0)
    distance, kind, survey = streets.meet(
        np.broadcast_to(origin, target.shape).astype(np.float32),
        direction.astype(np.float32),
        np.full(4000, np.inf, np.float32),
    )
    x, y, z = origin + distance * direction
    edge = streets.edge_m(x, y)
    face = (kind == Kind.KERB) & (np.abs(edge) < 0.1)
    assert np.abs(z - streets.height_m(x, y))[~face].max() < 0.01
    assert face.any()
    assert np.abs(survey.edge_m - edge)[~face].max() < 0.01
    assert {Kind.ROAD, Kind.SIDEWALK, Kind.KERB, Kind.WHITE_PAINT, Kind.YELLOW_PAINT} <= set(kind.tolist())
    assert (edge[kind == Kind.ROAD] < 0.02).all()
