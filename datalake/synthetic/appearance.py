"""The colors of things: textures of solids and of the ground, before light falls on them."""

from __future__ import annotations

import numpy as np

from datalake.synthetic.materials import Kind, Material
from datalake.synthetic.noise import look_up, unrolled
from datalake.synthetic.primitives import Primitives
from datalake.synthetic.streets import Survey

_GLASS = np.array([0.025, 0.03, 0.035], np.float32)
_GROUND_COLOR = np.zeros((len(Kind), 3), np.float32)
_GROUND_COLOR[Kind.ROAD] = 0.105, 0.105, 0.11
_GROUND_COLOR[Kind.WHITE_PAINT] = 0.62, 0.62, 0.6
_GROUND_COLOR[Kind.YELLOW_PAINT] = 0.6, 0.4, 0.06
_GROUND_COLOR[Kind.KERB] = 0.36, 0.36, 0.35
_GROUND_COLOR[Kind.SIDEWALK] = 0.3, 0.29, 0.28
_GROUND_COLOR[Kind.YARD] = 0.1, 0.15, 0.05


def ground_albedo(
    kind: np.ndarray, survey: Survey, x: np.ndarray, y: np.ndarray, footprint_m: np.ndarray
) -> np.ndarray:
    """Return float32 [N, 3]: reflectance of ground points.

    `footprint_m` [N] is the size of a pixel on the ground: finer texture fades there.
    """
    color = _GROUND_COLOR[kind]
    fine = np.clip(1 - footprint_m / 0.25, 0, 1)
    grain = 0.22 * look_up(x * 12, y * 12) * fine + 0.14 * look_up(x * 0.7 + 90, y * 0.7)
    # Tyres polish two tracks in every lane, and patches of newer asphalt are darker.
    worn = np.cos(survey.across_m * np.float32(2 * np.pi / 1.7)) * 0.06
    patch = np.where(look_up(np.floor(survey.along_m / 7) * 17, np.floor(survey.across_m / 3.4) * 23) > 0.55, -0.2, 0)
    on_road = (kind == Kind.ROAD) | (kind == Kind.WHITE_PAINT) | (kind == Kind.YELLOW_PAINT)
    joint = ((survey.along_m % 1.5 < 0.06) | (survey.edge_m % 1.5 < 0.06)) & (kind == Kind.SIDEWALK)
    grain = grain + np.where(on_road, worn + patch, 0) - 0.3 * joint * fine
    grain = np.where(kind == Kind.YARD, grain * 2, grain)
    rubbed = np.clip(look_up(x * 6 + 11, y * 6) * 0.8, 0, 0.6) * (
        (kind == Kind.WHITE_PAINT) | (kind == Kind.YELLOW_PAINT)
    )
    color = color + rubbed[:, None] * (_GROUND_COLOR[Kind.ROAD] - color)
    return (color * np.clip(1 + grain, 0.2, 2)[:, None]).astype(np.float32)


def solid_albedo(
    primitives: Primitives, index: np.ndarray, local: np.ndarray, dark: bool, distance_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return reflectance [N, 3], own light [N, 3] and mirror share [N], all float32, of points on solids.

    Point i lies on solid `index[i]` at `local[i]` in its unit frame; `dark` says whether lamps are on.
    """
    albedo = primitives.color[index].copy()
    light = np.zeros_like(albedo)
    mirror = np.zeros(len(index), np.float32)
    material = primitives.material[index]
    half = primitives.half_size.astype(np.float32)[index]
    for which, texture in _TEXTURES.items():
        rows = np.flatnonzero(material == which)
        if len(rows):
            salt = primitives.salt[index[rows]].astype(np.float32)
            albedo[rows], light[rows], mirror[rows] = texture(
                albedo[rows], local[rows], half[rows], salt, dark, distance_m[rows]
            )
    return albedo, light, mirror


def _rgb(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], np.float32)


Surface = tuple[np.ndarray, np.ndarray | float, np.ndarray | float]


def _paint(c: np.ndarray, p: np.ndarray, half: np.ndarray, salt: np.ndarray, dark: bool, _d: np.ndarray) -> Surface:
    """Vehicle body: lamps at the ends, dark sills, grille and plate, doors' gaps."""
    x, y, z = p.T
    metres_x = x * half[:, 0]
    c = np.where((z * half[:, 2] < 0.14 - half[:, 2])[:, None], np.float32(0.03), c)
    gap = (np.abs(np.abs(metres_x - 0.1) - 0.55) < 0.02) & (np.abs(x) < 0.8)
    c = np.where(gap[:, None], c * np.float32(0.4), c)
    front, back = x > 0.985, x < -0.985
    above, tall = (z + 1) * half[:, 2], half[:, 2] > 0.6
    lamp = (np.abs(y) > np.where(tall, 0.8, 0.58)) & (np.abs(y) < 0.93)
    lamp &= (above > 0.36) & (above < np.where(tall, 0.8, 0.54))
    grille = front & (np.abs(y) < 0.5) & (above > 0.18) & (above < 0.44)
    plate = (front | back) & (np.abs(y) < 0.28) & (above > 0.2) & (above < 0.32)
    doors = back & (np.abs(y) < 0.012) & tall
    c = np.where(doors[:, None], c * np.float32(0.5), c)
    c = np.where(grille[:, None], np.float32(0.04), c)
    c = np.where(plate[:, None], np.float32(0.6), c)
    head, tail = (front & lamp)[:, None], (back & lamp)[:, None]
    c = np.where(head, np.float32(0.6), c)
    c = np.where(tail, _rgb(0.35, 0.015, 0.01), c)
    strength = 1.0 if dark else 0.05
    glow = head * _rgb(1.3, 1.2, 0.95) * strength * 1.5 + tail * _rgb(0.9, 0.04, 0.02) * strength
    braking = back & lamp & (salt % 3 < 1)
    return c, glow + braking[:, None] * _rgb(0.7, 0.03, 0.02), np.where(head[:, 0] | tail[:, 0], 0.1, 0.12)


def _cabin(c: np.ndarray, p: np.ndarray, half: np.ndarray, _s: np.ndarray, _dark: bool, _d: np.ndarray) -> Surface:
    """Windows between pillars, below a painted roof."""
    x, y, z = p.T
    lean_x = np.abs(x) / (1 - 0.17 * (1 + z))
    lean_y = np.abs(y) / (1 - 0.08 * (1 + z))
    side = lean_y > lean_x
    along = np.where(side, lean_x, lean_y)
    pillar = (along > 0.93) | (side & (np.abs(x * half[:, 0] + 0.1) < 0.05))
    glass = (z < 0.78) & (z > -0.92) & ~pillar & (z < 0.985)
    return np.where(glass[:, None], _GLASS, c), 0.0, np.where(glass, 0.5, 0.12)


def _coach(c: np.ndarray, p: np.ndarray, half: np.ndarray, salt: np.ndarray, dark: bool, _d: np.ndarray) -> Surface:
    """Bus: a band of windows, a lighter stripe, lamps."""
    x, y, z = p.T
    end = np.abs(x) > np.abs(y)
    run = np.where(end, y * half[:, 1], x * half[:, 0])
    glass = (z > 0.02) & (z < 0.68) & (np.abs(run % 1.4 - 0.7) < 0.62) & (np.abs(z) < 0.99)
    glass |= (x > 0.985) & (z > -0.25) & (z < 0.7) & (np.abs(y) < 0.92)
    c = np.where(((z > -0.2) & (z < -0.05))[:, None], np.float32(0.6), c)
    c = np.where(glass[:, None], _GLASS, c)
    lamp = (np.abs(y) > 0.7) & (z < -0.6) & (z > -0.78)
    head, tail = ((x > 0.985) & lamp)[:, None], ((x < -0.985) & lamp)[:, None]
    strength = 1.0 if dark else 0.1
    glow = head * _rgb(2.0, 1.8, 1.5) * strength + tail * _rgb(0.9, 0.04, 0.02) * strength
    inside = glass[:, None] * _rgb(0.35, 0.32, 0.24) * (strength if dark else 0)
    return c, glow + inside * (salt % 2 < 1)[:, None], np.where(glass, 0.45, 0.08)


def _tyre(c: np.ndarray, p: np.ndarray, _h: np.ndarray, _s: np.ndarray, _dark: bool, _d: np.ndarray) -> Surface:
    radius = np.hypot(p[:, 0], p[:, 1])
    spoke = np.cos(np.arctan2(p[:, 1], p[:, 0]) * 5) > -0.4
    rim = (radius < 0.66) & (np.abs(p[:, 2]) > 0.9) & (spoke | (radius > 0.58))
    return np.where(rim[:, None], np.float32(0.35), c), 0.0, 0.0


def _cloth(c: np.ndarray, p: np.ndarray, _h: np.ndarray, salt: np.ndarray, _dark: bool, _d: np.ndarray) -> Surface:
    folds = 0.25 * look_up(p[:, 0] * 9 + salt, p[:, 2] * 7 + p[:, 1] * 9)
    striped = (c.sum(1) * 997 % 7 < 1) & (p[:, 2] * 4 % 1 < 0.5)
    return c * np.where(striped, 1.8, 1 + folds)[:, None], 0.0, 0.0


def _facade(c: np.ndarray, p: np.ndarray, half: np.ndarray, salt: np.ndarray, dark: bool, d: np.ndarray) -> Surface:
    """Floors of windows over a ground floor of shops, in bricks or plaster."""
    metres = p * half
    end = np.abs(p[:, 0]) > np.abs(p[:, 1])
    run = np.where(end, metres[:, 1], metres[:, 0]) + 40
    height = metres[:, 2] + half[:, 2]
    roof = p[:, 2] > 0.999
    bay, floor_m = 2.2 + (salt % 5) * 0.35, 3.1 + (salt % 3) * 0.25
    column, u = np.divmod(run, bay)
    floor, v = np.divmod(height - 0.6, floor_m)
    shop = height < 3.4
    wide = np.where(shop & (salt % 2 < 1), 0.42, 0.2 + (salt % 4) * 0.05)
    in_window = (np.abs(u / bay - 0.5) < wide) & (v > np.where(shop, 0.2, 0.9)) & (v < floor_m - 0.45)
    in_frame = (np.abs(u / bay - 0.5) < wide + 0.04) & (v > np.where(shop, 0.1, 0.75)) & (v < floor_m - 0.35)
    cross = in_window & ((np.abs(u / bay - 0.5) < 0.015) | (np.abs(v - floor_m * 0.55) < 0.04)) & ~shop
    near = np.clip(1 - d / 35, 0, 1)
    brick = ((height % 0.24 < 0.045) | ((run + 0.18 * (height // 0.24 % 2)) % 0.36 < 0.04)) & (salt % 2 < 1)
    stain = 0.16 * look_up(run * 1.3 + salt, height * 0.6) + 0.12 * look_up(run * 9 + salt, height * 9) * near
    c = c * (1 + stain - 0.35 * brick * near)[:, None]
    band = np.abs(v - floor_m) < 0.1
    c = np.where(band[:, None], c * np.float32(1.25), c)
    c = np.where((in_frame & ~in_window & ~roof)[:, None], np.float32(0.5), c)
    pick = look_up(column * 71 + salt * 3, floor * 53 + salt)
    drawn = (pick > 0.25) & (v > floor_m * 0.5)
    pane = np.where(drawn[:, None], _rgb(0.3, 0.28, 0.24), _GLASS)
    glass = in_window & ~roof & ~cross
    c = np.where(glass[:, None], pane, c)
    c = np.where(roof[:, None], np.float32(0.12), c)
    lit = glass & (pick > (0.1 if dark else 2.0))
    glow = lit[:, None] * _rgb(0.42, 0.3, 0.15) * (0.5 + np.abs(pick))[:, None]
    return c, glow, np.where(glass & ~drawn, 0.55, 0.0)


def _foliage(c: np.ndarray, p: np.ndarray, half: np.ndarray, salt: np.ndarray, _dark: bool, d: np.ndarray) -> Surface:
    x, y = unrolled(*(p * half.mean(1, keepdims=True)).T)
    x, y = x * 11 + salt, y * 11
    leaves = look_up(x, y) * np.clip(1.4 - d / 70, 0.4, 1) + 0.6 * look_up(x / 5 + 200, y / 5)
    # Less light reaches the leaves below.
    depth = 0.62 + 0.38 * p[:, 2]
    tint = np.stack([1 + 0.3 * leaves, np.ones_like(leaves), 1 - 0.2 * leaves], 1)
    return c * tint * (depth * np.clip(1 + 0.9 * leaves, 0.15, 2.2))[:, None], 0.0, 0.0


def _bark(c: np.ndarray, p: np.ndarray, half: np.ndarray, salt: np.ndarray, _dark: bool, _d: np.ndarray) -> Surface:
    grain = look_up(np.arctan2(p[:, 1], p[:, 0]) * 12 + salt, p[:, 2] * half[:, 2] * 2)
    return c * (1 + 0.4 * grain)[:, None], 0.0, 0.0


def _sign(c: np.ndarray, p: np.ndarray, _h: np.ndarray, salt: np.ndarray, _dark: bool, _d: np.ndarray) -> Surface:
    """A rim, and a bar or an arrow; the back of a disc or a box stays gray."""
    # A disc lies on its side: its unit z is the plate's normal.
    disc = np.hypot(p[:, 0], p[:, 1]) > 0.999 * np.abs(p[:, 0])
    face = np.where(np.abs(p[:, 2]) > 0.99, p[:, 2] > 0, p[:, 0] > 0)
    across, up = p[:, 1], np.where(np.abs(p[:, 2]) > 0.99, -p[:, 0], p[:, 2])
    edge = np.maximum(np.abs(across), np.abs(up)) > 0.86
    edge |= disc & (np.hypot(across, up) > 0.86) & (np.abs(p[:, 2]) > 0.99)
    bar = np.where(salt % 2 < 1, np.abs(up) < 0.2, np.abs(across) < 0.18) & (np.hypot(across, up) < 0.7)
    c = np.where((edge | bar)[:, None], np.where(c.mean(1, keepdims=True) > 0.5, np.float32(0.1), np.float32(0.75)), c)
    return np.where(face[:, None], c, np.float32(0.3)), 0.0, 0.0


def _lamp(c: np.ndarray, p: np.ndarray, _h: np.ndarray, _s: np.ndarray, dark: bool, _d: np.ndarray) -> Surface:
    return c * np.float32(0.4), c * np.where((p[:, 2] < 0)[:, None], 3.0 if dark else 0.0, 0.0), 0.0


def _signal(c: np.ndarray, _p: np.ndarray, _h: np.ndarray, _s: np.ndarray, dark: bool, _d: np.ndarray) -> Surface:
    return c * np.float32(0.2), c * np.float32(0.6 if dark else 1.0), 0.0


_TEXTURES = {
    Material.PAINT: _paint,
    Material.CABIN: _cabin,
    Material.COACH: _coach,
    Material.TYRE: _tyre,
    Material.CLOTH: _cloth,
    Material.FACADE: _facade,
    Material.FOLIAGE: _foliage,
    Material.BARK: _bark,
    Material.SIGN: _sign,
    Material.LAMP: _lamp,
    Material.SIGNAL: _signal,
}
