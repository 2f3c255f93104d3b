"""How fast the loader alone is, and decoders of JPEG alone."""

from __future__ import annotations

import io
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg
from torchvision.transforms.functional import resize

from benchmarks.gpu.card import wait
from benchmarks.gpu.command import run_command
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.workplace import Workplace
from benchmarks.samples import read_jpegs
from datalake.lake import Lake
from tests.support.training_step import stream_of

_BATCH = 16
# What a training logs of its speed.
_TOLD = ("images_per_second", "wait/data", "wait/teachers")

# From JPEGs and a width and height to images of that size.
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
    batch = sizes.batches[len(sizes.batches) // 2]
    for teachers in ((), tuple(place.teachers)):
        name = f"train.py, {' '.join(teachers) or 'no teachers'} B{batch}"
        rows.attempt(name, 15, partial(_whole_training, place, teachers, batch, rows.left_s / 2))
    jpegs = list(read_jpegs(full_size, ("FRONT",)).values())[:_BATCH]
    decoders: dict[str, Decoder] = {
        "Pillow scaling while it decodes": _pillow,
        "torchvision on the CPU": partial(_torchvision, device=torch.device("cpu")),
    }
    if device.type == "cuda":
        decoders["nvJPEG"] = partial(_torchvision, device=device)
    for name, decode in decoders.items():
        rows.attempt(f"decoding, {name}", 2, partial(_decoding, decode, jpegs, place))


def _whole_training(place: Workplace, teachers: Sequence[str], batch: int, most_s: float) -> Mapping[str, Any]:
    """`pipelines/train.py` from the lake on, as users run it: images a second, and what it waited for."""
    sizes, out = place.sizes, place.scratch / f"whole-{len(teachers)}"
    named = [f"{name}={place.teachers[name]}" for name in teachers] or ["none"]
    status, output = run_command(
        "pipelines.train",
        [
            "--lake", str(place.scratch / "drives"), "--out", str(out), "--teachers", *named, "--batch", str(batch),
            "--image-size", *map(str, sizes.image_size), "--device", str(place.device),
            "--loop.steps", str(sizes.warmup + sizes.timed), *(["--min-anchor-recall", "0"] if place.dry else []),
        ],
        most_s,
    )  # fmt: skip
    if status:
        raise RuntimeError(f"train.py ended with {status}: {output[-300:]}")
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()][sizes.warmup :]
    return {name: statistics.median(line[name] for line in lines) for name in _TOLD}


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
    images, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < place.sizes.loader_s:
        images += len(next(batches))
    return {"images_per_second": images / seconds}


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
    images = []
    for jpeg in jpegs:
        with Image.open(io.BytesIO(jpeg)) as image:
            drafted = image.draft("RGB", size)
            box = drafted[1] if drafted else None
            images.append(np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box)))
    return images


def _torchvision(jpegs: list[bytes], size: tuple[int, int], device: torch.device) -> list[Any]:
    coded = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
    decoded = decode_jpeg(coded, device=device) if device.type == "cuda" else [decode_jpeg(one) for one in coded]
    return [resize(image, [size[1], size[0]], antialias=True) for image in decoded]
