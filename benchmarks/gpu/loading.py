"""How fast the loader alone is, and decoders of JPEG alone."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg
from torchvision.transforms.functional import resize

from benchmarks.gpu.card import wait
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.workplace import Workplace
from benchmarks.samples import read_jpegs
from datalake.lake import Lake
from tests.support.training_step import stream_of

_BATCH = 16

# From JPEGs and a width and height to pictures of that size.
Decoder = Callable[[list[bytes], tuple[int, int]], Any]


def measure_loading(place: Workplace, rows: Rows) -> None:
    """Time the loader on simulated and on full-size frames, with and without points, and the decoders."""
    sizes, device = place.sizes, place.device
    cores = len(os.sched_getaffinity(0))
    threads, workers = sorted({1, min(4, cores), cores}), sorted({min(4, cores), min(8, cores)})
    shapes = [(count, 0) for count in threads] + [(1, count) for count in workers]
    most = [(threads[-1], 0), (1, workers[-1])]
    drives = place.lake("drives", rows.left_s)
    for points, tried in ((True, shapes), (False, most)):
        for thread, worker in tried:
            rows.attempt(
                _named("simulated", points, thread, worker),
                sizes.loader_s + 2,
                partial(_loader, drives, place, points=points, threads=thread, workers=worker),
            )
    full_size = place.lake("full_size", rows.left_s)
    for points in (True, False):
        for thread, worker in most:
            rows.attempt(
                _named("full size", points, thread, worker),
                sizes.loader_s + 2,
                partial(_loader, full_size, place, points=points, threads=thread, workers=worker),
            )
    jpegs = list(read_jpegs(full_size, ("FRONT",)).values())[:_BATCH]
    decoders: dict[str, Decoder] = {
        "Pillow scaling while it decodes": _pillow,
        "torchvision on the CPU": partial(_torchvision, device=torch.device("cpu")),
    }
    if device.type == "cuda":
        decoders["nvJPEG"] = partial(_torchvision, device=device)
    for name, decode in decoders.items():
        rows.attempt(f"decoding, {name}", 2, partial(_decoding, decode, jpegs, place))


def _named(kind: str, points: bool, threads: int, workers: int) -> str:
    how = f"{workers} workers" if workers else f"{threads} threads"
    return f"{kind}, {'with' if points else 'no'} points, {how}"


def _loader(lake: Lake, place: Workplace, *, points: bool, threads: int, workers: int) -> Mapping[str, Any]:
    stream = stream_of(
        lake, "train", place.sizes.image_size, min(_BATCH, 4) if place.dry else _BATCH, points=points, threads=threads
    )
    batches = iter(stream.loader(workers))
    # Processes start, files are opened, and what is read ahead is read.
    for _ in range(max(1, workers)):
        next(batches)
    pictures, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < place.sizes.loader_s:
        pictures += len(next(batches))
    return {"images_per_second": pictures / seconds}


def _decoding(decode: Decoder, jpegs: list[bytes], place: Workplace) -> Mapping[str, Any]:
    decode(jpegs, place.sizes.image_size)
    wait(place.device)
    rounds, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < place.sizes.loader_s / 2:
        decode(jpegs, place.sizes.image_size)
        wait(place.device)
        rounds += 1
    return {"images_per_second": rounds * len(jpegs) / seconds, "batch": len(jpegs)}


def _pillow(jpegs: list[bytes], size: tuple[int, int]) -> list[Any]:
    pictures = []
    for jpeg in jpegs:
        with Image.open(io.BytesIO(jpeg)) as picture:
            drafted = picture.draft("RGB", size)
            box = drafted[1] if drafted else None
            pictures.append(np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=box)))
    return pictures


def _torchvision(jpegs: list[bytes], size: tuple[int, int], device: torch.device) -> list[Any]:
    coded = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
    decoded = decode_jpeg(coded, device=device) if device.type == "cuda" else [decode_jpeg(one) for one in coded]
    return [resize(picture, [size[1], size[0]], antialias=True) for picture in decoded]
