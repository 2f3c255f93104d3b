"""From what the rays met to an image: light, reflections, air, lens and sensor."""

from __future__ import annotations

import numpy as np

from datalake.synthetic.appearance import ground_albedo, solid_albedo
from datalake.synthetic.atmosphere import Atmosphere
from datalake.synthetic.camera import Camera
from datalake.synthetic.materials import Kind
from datalake.synthetic.primitives import Primitives, surface
from datalake.synthetic.shadow import ground_light
from datalake.synthetic.visibility import GROUND, Hits, Rays

_LAMP_LIGHT = np.array([1.0, 0.72, 0.4], np.float32)
_LAMP_REACH_M = 24
_HEADLIGHT = np.array([1.0, 0.96, 0.85], np.float32)


def shade(
    camera: Camera,
    camera_to_scene: np.ndarray,
    rays: Rays,
    hits: Hits,
    primitives: Primitives,
    atmosphere: Atmosphere,
    lamps: np.ndarray,
) -> np.ndarray:
    """Return the light that reaches each pixel: float32 [H, W, 3], linear RGB."""
    casts = atmosphere.clouds < 0.8 and atmosphere.sun.max() > 0.1
    sunlit, open_sky = ground_light(
        camera, camera_to_scene, rays, hits, primitives, atmosphere.sun_direction if casts else None
    )
    shape = hits.distance_m.shape
    count = shape[0] * shape[1]
    direction = rays.direction.reshape(3, count)
    distance = hits.distance_m.ravel()
    primitive = hits.primitive.ravel()
    image = np.zeros((count, 3), np.float32)

    sky = np.flatnonzero(~np.isfinite(distance))
    image[sky] = atmosphere.sky(direction[:, sky])

    solid = np.flatnonzero(primitive >= 0)
    normal, local = surface(primitives, primitive[solid], rays.origin, direction[:, solid], distance[solid])
    albedo, glow, mirror = solid_albedo(primitives, primitive[solid], local, atmosphere.is_dark, distance[solid])
    lit = _light(atmosphere, normal, np.float32(1), np.float32(1))
    point = rays.origin.astype(np.float32) + direction * np.where(np.isfinite(distance), distance, 0)
    if atmosphere.is_dark:
        lit += _lamp_light(atmosphere, lamps, camera_to_scene, point[:, solid], normal)
    color = albedo * lit + glow
    color += _reflection(atmosphere, direction[:, solid], normal, mirror)
    image[solid] = atmosphere.veil(color, distance[solid])

    ground = np.flatnonzero(primitive == GROUND)
    up = np.zeros((len(ground), 3), np.float32)
    up[:, 2] = 1
    footprint = distance[ground] / camera.intrinsic[0] / np.maximum(-direction[2, ground], 0.02)
    kind = hits.ground_kind.ravel()[ground]
    albedo = ground_albedo(kind, hits.survey, point[0, ground], point[1, ground], footprint)
    albedo *= np.float32(1 - 0.45 * atmosphere.wetness)
    lit = _light(atmosphere, up, sunlit.ravel()[ground], open_sky.ravel()[ground])
    if atmosphere.is_dark:
        lit += _lamp_light(atmosphere, lamps, camera_to_scene, point[:, ground], up)
    color = albedo * lit
    if atmosphere.wetness:
        ripple = albedo[:, 0] * 2 + 0.4
        shine = np.where(kind <= Kind.YELLOW_PAINT, 0.75, 0.35) * atmosphere.wetness * ripple
        color += _reflection(atmosphere, direction[:, ground], up, shine * open_sky.ravel()[ground])
    image[ground] = atmosphere.veil(color, distance[ground])
    return image.reshape(*shape, 3)


def _light(
    atmosphere: Atmosphere, normal: np.ndarray, sunlit: np.ndarray | np.float32, open_sky: np.ndarray | np.float32
) -> np.ndarray:
    """Return the sunlight and skylight that fall on surfaces with these normals [N, 3]."""
    facing = np.maximum(np.einsum("ni,i->n", normal, atmosphere.sun_direction.astype(np.float32)), 0) * sunlit
    sky = (np.float32(0.6) + np.float32(0.4) * normal[:, 2]) * open_sky
    return facing[:, None] * atmosphere.sun + sky[:, None] * atmosphere.ambient


def _lamp_light(
    atmosphere: Atmosphere, lamps: np.ndarray, camera_to_scene: np.ndarray, point: np.ndarray, normal: np.ndarray
) -> np.ndarray:
    """Return the light of street lamps and of the own headlights on points [3, N], float32 [N, 3]."""
    strength = np.float32(0.9 if atmosphere.sun.max() < 0.1 else 0.25)
    light = np.zeros((point.shape[1], 3), np.float32)
    near = lamps[np.linalg.norm(lamps[:, :2] - camera_to_scene[:2, 3], axis=1) < 90]
    for lamp in near.astype(np.float32):
        reached = np.flatnonzero(np.abs(lamp[0] - point[0]) + np.abs(lamp[1] - point[1]) < _LAMP_REACH_M)
        offset = lamp[:, None] - point[:, reached]
        squared = (offset**2).sum(0)
        facing = np.maximum((normal[reached] * offset.T).sum(1), 0) / np.sqrt(squared)
        down = np.clip(offset[2] / np.sqrt(squared) * 1.4 - 0.3, 0, 1)
        light[reached] += (facing * down * strength * 26 / squared)[:, None] * _LAMP_LIGHT
    axes = camera_to_scene[:3, :3].astype(np.float32)
    offset = np.einsum("ji,jn->in", axes, point - camera_to_scene[:3, 3:].astype(np.float32))
    distance = np.linalg.norm(offset, axis=0)
    side = offset[1] / np.maximum(offset[0], 0.5)
    rise = (offset[2] + 1.4) / np.maximum(offset[0], 0.5)
    beam = np.exp(-((side / 0.38) ** 2)) / (1 + np.exp(np.clip(rise * 60, -30, 30)))
    towards = np.abs(np.einsum("ni,i->n", normal, axes[:, 0])) * 0.8 + 0.2
    light += (strength * 110 * beam * towards / (30 + distance**2))[:, None] * _HEADLIGHT
    return light


def _reflection(atmosphere: Atmosphere, direction: np.ndarray, normal: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Return the mirrored sky, stronger at grazing angles, float32 [N, 3]; `mirror` [N] is its share head on."""
    light = np.zeros((len(normal), 3), np.float32)
    rows = np.flatnonzero(mirror > 0)
    along, across = direction[:, rows], normal[rows].T
    cosine = -(along * across).sum(0)
    mirrored = along + 2 * cosine * across
    fresnel = mirror[rows] * (0.12 + 0.88 * np.clip(1 - cosine, 0, 1) ** 4)
    # What would mirror the other side of the street is dimmer than the sky.
    blocked = np.where(mirrored[2] < 0.12, 0.35, 1.0)
    mirrored[2] = np.abs(mirrored[2])
    light[rows] = atmosphere.sky(mirrored) * (fresnel * blocked)[:, None].astype(np.float32)
    return light


def develop(light: np.ndarray, atmosphere: Atmosphere, rng: np.random.Generator) -> np.ndarray:
    """Return the photograph: uint8 [H, W, 3] from linear light, with lens, sensor and weather in front."""
    height, width = light.shape[:2]
    light = light * np.float32(atmosphere.exposure)
    if atmosphere.is_dark:
        light = light + _blurred(np.maximum(light - 1.0, 0), 5) * np.float32(0.6)
    light = _softened(np.minimum(light, 4))
    v, u = np.mgrid[:height, :width].astype(np.float32)
    off_axis = ((u / width - 0.5) ** 2 + (v / height - 0.5) ** 2) * np.float32(2)
    light *= (1 - np.float32(0.35) * off_axis)[..., None]
    if atmosphere.weather == "rain":
        light = light + _rain(height, width, rng)[..., None] * (0.05 + 0.12 * atmosphere.horizon * atmosphere.exposure)
    noise = rng.standard_normal(light.shape, np.float32)
    light += noise * np.sqrt(np.maximum(light, 0) * np.float32(0.0004) + np.float32(0.00003))
    light = np.maximum(light, 0)
    # A shoulder keeps lamps and sky from clipping hard.
    toned = np.where(light > 0.6, 0.6 + 0.4 * np.tanh((light - 0.6) / 0.6), light)
    return (np.clip(toned, 0, 1) ** np.float32(1 / 2.2) * 255 + 0.5).astype(np.uint8)


def _softened(light: np.ndarray) -> np.ndarray:
    """Blur by about a third of a pixel, which also smooths the stairs of edges."""
    for axis in (0, 1):
        ahead, behind = np.roll(light, 1, axis), np.roll(light, -1, axis)
        edge = [slice(None)] * 3
        edge[axis] = slice(0, 1)
        ahead[tuple(edge)] = light[tuple(edge)]
        edge[axis] = slice(-1, None)
        behind[tuple(edge)] = light[tuple(edge)]
        light = light * np.float32(0.7) + (ahead + behind) * np.float32(0.15)
    return light


def _blurred(light: np.ndarray, radius: int) -> np.ndarray:
    """Average over a square of `2 radius + 1` pixels."""
    for axis in (0, 1):
        pad = [(0, 0)] * 3
        pad[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(light, pad), axis=axis)
        size = light.shape[axis]
        light = (np.take(total, np.arange(size) + 2 * radius + 1, axis) - np.take(total, np.arange(size), axis)) / (
            2 * radius + 1
        )
    return light


def _rain(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return float32 [H, W]: short, slightly slanted streaks."""
    streaks = np.zeros((height, width), np.float32)
    count = height * width // 900
    u, v = rng.integers(0, width, count), rng.integers(0, height, count)
    length = max(height // 24, 3)
    strength = rng.uniform(0.2, 1, count).astype(np.float32)
    for step in range(length):
        rows, columns = v + step, u + step // 5
        inside = (rows < height) & (columns < width)
        streaks[rows[inside], columns[inside]] += strength[inside]
    return streaks
