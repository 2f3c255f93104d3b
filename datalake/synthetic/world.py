"""One segment's world: what stands, what moves, the light, and the map it lies on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datalake.synthetic.atmosphere import Atmosphere
from datalake.synthetic.body import Limbs
from datalake.synthetic.layout import Layout, draw_layout
from datalake.synthetic.motion import Ride, rotation_from_euler
from datalake.synthetic.primitives import Primitives
from datalake.synthetic.traffic import Actor, draw_traffic

# Nothing farther than this is drawn.
VIEW_M = 220.0


@dataclass(frozen=True, slots=True)
class World:
    """Everything that is drawn once for a segment. Actor number i is object instance i + 1."""

    layout: Layout
    actors: tuple[Actor, ...]
    limbs: Limbs
    ride: Ride
    atmosphere: Atmosphere
    scene_to_world: np.ndarray
    """float64 [4, 4]: the flat scene lies turned, slightly tilted and far from the map's origin."""

    @staticmethod
    def draw(rng: np.random.Generator) -> World:
        """Draw a world."""
        atmosphere = Atmosphere.draw(rng)
        layout = draw_layout(rng)
        ride, actors = draw_traffic(rng, layout)
        transform = np.eye(4)
        tilt = rng.uniform(-0.02, 0.02, 2)
        transform[:3, :3] = rotation_from_euler(float(tilt[0]), float(tilt[1]), float(rng.uniform(-np.pi, np.pi)))
        transform[:3, 3] = rng.uniform([-9000, -9000, -20], [9000, 9000, 200])
        limbs = Limbs.collect([actor.outline.parts for actor in actors], np.arange(1, len(actors) + 1))
        return World(layout, actors, limbs, ride, atmosphere, transform)

    def at(self, t: float) -> Moment:
        """Return the world at `t` seconds."""
        poses = np.array([actor.track.pose(t) for actor in self.actors]).reshape(-1, 4)
        x, y, heading, phase = poses.T
        raised = np.array([actor.track.raised_m for actor in self.actors])
        position = np.stack([x, y, self.layout.streets.height_m(x, y) + raised], 1)
        moving = self.limbs.place(position, heading, phase)
        solids = Primitives.concatenate([self.layout.solids, moving])
        here = self.ride.vehicle_to_scene(t)[:3, 3]
        near = np.linalg.norm(solids.center[:, :2] - here[:2], axis=1) - solids.radius_m < VIEW_M
        return Moment(solids.take(near), position, heading)


@dataclass(frozen=True, slots=True)
class Moment:
    """The scene at one time."""

    primitives: Primitives
    position_m: np.ndarray
    """float64 [A, 3]: the actors' origins, scene frame."""
    heading_rad: np.ndarray
    """float64 [A]."""
