from __future__ import annotations

import numpy as np

from datalake.synthetic.world import World


def test_what_stands_still_looks_the_same_in_every_frame() -> None:
    world = World.draw(np.random.default_rng(2))
    looks = []
    for t in (0.0, 3.0):
        solids = world.at(t).primitives
        rows = np.flatnonzero(solids.instance == 0)
        centers = map(tuple, solids.center[rows].tolist())
        looks.append(dict(zip(centers, solids.salt[rows].tolist(), strict=True)))
    shared = looks[0].keys() & looks[1].keys()
    assert len(shared) > 100
    assert all(looks[0][place] == looks[1][place] for place in shared)


def test_nobody_drives_through_the_vehicle_ahead() -> None:
    for seed in range(6):
        world = World.draw(np.random.default_rng(seed))
        for t in (0.0, 4.0, 8.0):
            position = world.at(t).position_m
            own = world.ride.vehicle_to_scene(t)
            local = (position - own[:3, 3]) @ own[:3, :3]
            boxes = np.array([[a.outline.length_m, a.outline.width_m] for a in world.actors])
            # The recording vehicle reaches from 1 m behind its origin to 3.8 m ahead of it.
            touches = (np.abs(local[:, 0] - 1.4) < 2.4) & (np.abs(local[:, 1]) < 0.9 + 0.3 * boxes[:, 1].clip(max=1))
            assert not touches.any()
