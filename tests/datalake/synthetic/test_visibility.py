from __future__ import annotations

import numpy as np

from datalake.synthetic.camera import Camera
from datalake.synthetic.lidar import Lidar
from datalake.synthetic.visibility import Hits, Rays, Windows, cast
from datalake.synthetic.world import World

LIMIT_M = 70.0


def _everywhere(rays: Rays, count: int) -> Windows:
    """Return windows that try every solid on every ray."""
    whole = np.tile([0, rays.direction.shape[1], 0, rays.direction.shape[2]], (count, 1))
    return Windows(np.arange(count), whole, np.zeros(count))


def _same(first: Hits, second: Hits) -> bool:
    return np.array_equal(first.primitive, second.primitive) and np.array_equal(first.distance_m, second.distance_m)


def test_camera_windows_lose_nothing() -> None:
    camera = Camera.mount("FRONT", 96, 64)
    for seed in range(2):
        world = World.draw(np.random.default_rng(seed))
        solids = world.at(0.0).primitives
        pose = world.ride.vehicle_to_scene(0.0) @ camera.camera_to_vehicle
        rays, windows = camera.rays(pose), camera.view(solids, pose)
        windowed = cast(rays, solids, windows, world.layout.streets, LIMIT_M)
        assert _same(windowed, cast(rays, solids, _everywhere(rays, len(solids)), world.layout.streets, LIMIT_M))


def test_lidar_windows_lose_nothing() -> None:
    lidar = Lidar.mount(12, 60)
    for seed in range(2):
        world = World.draw(np.random.default_rng(seed))
        solids = world.at(0.0).primitives
        poses = world.ride.vehicle_to_scene(lidar.fired_s) @ lidar.lidar_to_vehicle
        rays, windows = lidar.rays(poses), lidar.view(solids, poses)
        windowed = cast(rays, solids, windows, world.layout.streets, LIMIT_M)
        assert _same(windowed, cast(rays, solids, _everywhere(rays, len(solids)), world.layout.streets, LIMIT_M))
