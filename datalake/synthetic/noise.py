"""Procedural noise: one tile, made once, looked up everywhere."""

from __future__ import annotations

import functools

import numpy as np

_SIZE = 512


@functools.cache
def tile() -> np.ndarray:
    """Return float32 [512, 512] of fractal noise, mean 0, about -1 to 1, that repeats without a seam."""
    rng = np.random.default_rng(np.random.SeedSequence(20230))
    frequency = np.hypot(np.fft.fftfreq(_SIZE)[:, None], np.fft.rfftfreq(_SIZE)[None, :]) * _SIZE
    spectrum = np.fft.rfft2(rng.standard_normal((_SIZE, _SIZE)))
    spectrum *= np.where(frequency > 3, 1 / np.maximum(frequency, 1) ** 0.85, 0)
    pattern = np.fft.irfft2(spectrum, s=(_SIZE, _SIZE))
    return (pattern / (2.5 * pattern.std())).astype(np.float32)


def look_up(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the tile's value at float coordinates, one cell per unit, wrapped around."""
    columns = np.floor(x).astype(np.int32) & (_SIZE - 1)
    rows = np.floor(y).astype(np.int32) & (_SIZE - 1)
    return tile()[rows, columns]


def leaf_holes(point: np.ndarray, facing: np.ndarray, salt: int) -> np.ndarray:
    """Tell where a ray passes between the leaves of a unit sphere of foliage: bool of the trailing shape.

    `point` is float32 [3, ...] on the sphere, `facing` the cosine between the ray and the inward normal.
    Holes gather near the silhouette, and are the same for every sensor.
    """
    shift = 37.0 * (salt % 101)
    x, y = unrolled(*point)
    return look_up(x * 38 + shift, y * 38 + shift) > 2.2 * facing - 0.55


def unrolled(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two of the three coordinates of points about a center: those along the surface, roughly."""
    upright = np.abs(z) < np.maximum(np.abs(x), np.abs(y))
    return np.where(upright & (np.abs(x) > np.abs(y)), y, x), np.where(upright, z, y)
