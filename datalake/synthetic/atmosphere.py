"""Light and air of one segment: time of day, weather, sun, sky and haze."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datalake.synthetic.noise import look_up

DAY, TWILIGHT, NIGHT = "Day", "Dawn/Dusk", "Night"


@dataclass(frozen=True, slots=True)
class Atmosphere:
    """Colors are linear RGB, float32 [3]; 1 is a white surface in full sun."""

    time_of_day: str
    weather: str
    """"sunny", "rain" or "fog"."""
    sun_direction: np.ndarray
    """float64 [3]: unit vector towards the sun (or the moon), scene frame."""
    sun: np.ndarray
    ambient: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    """0 (clear) to 1 (closed cover, no shadows)."""
    haze_per_m: float
    wetness: float
    """0 (dry) to 1 (mirrors on the road)."""
    exposure: float

    @property
    def is_dark(self) -> bool:
        """Whether lamps and headlights are on."""
        return self.time_of_day != DAY

    @property
    def sight_m(self) -> float:
        """Where haze leaves a tenth of the contrast."""
        return float(-np.log(0.1) / self.haze_per_m)

    @staticmethod
    def draw(rng: np.random.Generator) -> Atmosphere:
        """Draw one, mostly by day and dry."""
        time = str(rng.choice([DAY, TWILIGHT, NIGHT], p=[0.66, 0.17, 0.17]))
        weather = str(rng.choice(["sunny", "rain", "fog"], p=[0.7, 0.17, 0.13]))
        clouds = float(rng.choice([rng.uniform(0, 0.5), rng.uniform(0.85, 1)], p=[0.6, 0.4]))
        if weather != "sunny":
            clouds = 1.0
        elevation = {DAY: rng.uniform(0.35, 1.1), TWILIGHT: rng.uniform(0.1, 0.25), NIGHT: 0.7}[time]
        azimuth = rng.uniform(-np.pi, np.pi)
        direction = np.array(
            [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
        )
        clear = 1 - clouds
        if time == DAY:
            sun = np.array([1.0, 0.93, 0.8]) * (0.15 + 2.1 * clear)
            ambient = np.array([0.34, 0.41, 0.54]) * clear + np.array([0.62, 0.65, 0.68]) * clouds
            zenith = np.array([0.16, 0.32, 0.66]) * clear + np.array([0.5, 0.53, 0.57]) * clouds
            horizon = np.array([0.6, 0.7, 0.82]) * clear + np.array([0.72, 0.74, 0.76]) * clouds
        elif time == TWILIGHT:
            sun = np.array([1.0, 0.55, 0.25]) * (0.05 + 0.9 * clear)
            ambient = np.array([0.2, 0.2, 0.28])
            zenith = np.array([0.12, 0.17, 0.35]) * clear + np.array([0.2, 0.21, 0.25]) * clouds
            horizon = np.array([0.85, 0.5, 0.3]) * clear + np.array([0.38, 0.36, 0.36]) * clouds
        else:
            sun = np.array([0.02, 0.025, 0.04])
            ambient = np.array([0.035, 0.037, 0.05])
            zenith, horizon = np.array([0.006, 0.009, 0.02]), np.array([0.04, 0.035, 0.035])
        wetness = float(rng.uniform(0.5, 1)) if weather == "rain" else 0.0
        haze = {"sunny": rng.uniform(0.0005, 0.002), "rain": rng.uniform(0.003, 0.008), "fog": rng.uniform(0.01, 0.024)}
        if weather == "fog":
            zenith = horizon
        exposure = {DAY: 1.05, TWILIGHT: 1.6, NIGHT: 2.6}[time] * float(rng.uniform(0.8, 1.25))
        f32 = np.float32
        return Atmosphere(
            time, weather, direction, sun.astype(f32), ambient.astype(f32), zenith.astype(f32), horizon.astype(f32),
            clouds, float(haze[weather]), wetness, exposure,
        )  # fmt: skip

    def sky(self, direction: np.ndarray) -> np.ndarray:
        """Return the sky's color, float32 [N, 3], along unit directions float32 [3, N]."""
        up = np.clip(direction[2], 0, 1)[:, None]
        color = self.horizon + (self.zenith - self.horizon) * np.sqrt(up)
        # Clouds lie on a plane far above.
        reach = 22 / (direction[2] + 0.12)
        cover = look_up(direction[0] * reach * 2, direction[1] * reach * 2)[:, None]
        bright = self.horizon * np.float32(1.05 if self.weather != "rain" else 0.85)
        share = np.clip(cover + 1.6 * np.float32(self.clouds) - 0.7, 0, 1) * np.clip(up * 5, 0, 1) * np.float32(0.75)
        color = color + share * (bright - color)
        glow = np.clip(np.einsum("i,in->n", self.sun_direction.astype(np.float32), direction), 0, 1)[:, None] ** 60
        return (color + glow * self.sun * np.float32(1.2 * (1 - 0.8 * self.clouds))).astype(np.float32)

    def veil(self, color: np.ndarray, distance_m: np.ndarray) -> np.ndarray:
        """Return colors [N, 3] seen through `distance_m` [N] of air."""
        clear = np.exp(np.float32(-self.haze_per_m) * distance_m)[:, None]
        return self.horizon * (1 - clear) + color * clear
