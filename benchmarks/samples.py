"""The samples of a lake as plain arrays, for loaders that bring their own format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from datalake.lake import Lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.sample import SampleKey

# Name, type and shape of everything that belongs to an image, as in `datalake.sample`.
SHAPES: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "boxes": (np.float32, (-1, 4)),
    "classes": (np.int64, (-1,)),
    "depth_m": (np.float32, (-1,)),
    "points": (np.float32, (4, -1)),
    "laser": (np.int8, (-1,)),
    "pixel_point": (np.int32, (-1,)),
    "pixel_uv": (np.float32, (2, -1)),
    "pixel_depth_m": (np.float32, (-1,)),
}


@dataclass(frozen=True, slots=True)
class Record:
    """One image, still compressed, and its arrays by their names in `SHAPES`."""

    jpeg: bytes
    arrays: dict[str, NDArray[Any]]


def read_jpegs(lake: Lake, cameras: tuple[str, ...]) -> dict[SampleKey, bytes]:
    """Return the compressed images of `cameras`, each with memory of its own."""
    jpegs = {}
    for commit in lake.commits:
        table = pq.read_table(
            lake.store.path(commit.file_name("image")),
            columns=["segment", "timestamp_us", "camera", "jpeg"],
            use_threads=False,
        )
        for *key, jpeg in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if key[2] in cameras:
                jpegs[SampleKey(*key)] = jpeg
    return jpegs


def records(lake: Lake, cameras: tuple[str, ...], jpegs: dict[SampleKey, bytes]) -> Iterator[Record]:
    """Yield every image with its arrays, in the lake's order."""
    config = LoaderConfig(cameras=cameras, shuffle=False, streams=1)
    for sample in SampleStream(lake, config):
        objects, lidar = sample.objects, sample.lidar
        assert lidar is not None
        values = {
            "boxes": objects.boxes,
            "classes": objects.classes,
            "depth_m": objects.depth_m,
            "points": lidar.points,
            "laser": lidar.laser,
            "pixel_point": lidar.pixel_point,
            "pixel_uv": lidar.pixel_uv,
            "pixel_depth_m": lidar.pixel_depth_m,
        }
        yield Record(jpegs[sample.key], {name: tensor.numpy() for name, tensor in values.items()})


def tensors(arrays: dict[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """Return the arrays as tensors, without a copy."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
