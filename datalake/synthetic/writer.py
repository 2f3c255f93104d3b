"""Writes drives to TFRecord files, one per segment, several at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, as_completed

import fsspec

from datalake.children import process_pool
from datalake.sources.waymo_v1.tfrecord import write_records
from datalake.synthetic.drive import DriveConfig, segment_name, simulate_segment


def write_drives(
    out: str,
    config: DriveConfig,
    *,
    segments: int,
    frames: int,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[str]:
    """Write `segments` files `segment-<name>.tfrecord` of `frames` frames each below the URL `out`.

    Returns their paths in order. A file that exists already is kept: its name stands for seed, configuration and
    length. `progress` is called with each path when it is complete. The bytes do not depend on
    `workers`. Raises ValueError where a count is below 1.
    """
    for name, count, least in (
        ("segments", segments, 1), ("frames", frames, 1), ("workers", workers, 1), ("seed", seed, 0),
    ):  # fmt: skip
        if count < least:
            raise ValueError(f"{name} is {count}: give at least {least}")
    fs, _ = fsspec.core.url_to_fs(out)
    paths = [
        f"{out.rstrip('/')}/segment-{segment_name(config, seed, index, frames)}.tfrecord" for index in range(segments)
    ]
    finished = progress or (lambda _: None)
    missing = []
    for index, path in enumerate(paths):
        if fs.exists(path):
            finished(path)
        else:
            missing.append(index)
    if workers == 1 or len(missing) < 2:
        for index in missing:
            _write_segment(paths[index], config, seed, index, frames)
            finished(paths[index])
        return paths
    with process_pool(min(workers, len(missing))) as pool:
        running: dict[Future[None], str] = {
            pool.submit(_write_segment, paths[index], config, seed, index, frames): paths[index] for index in missing
        }
        for done in as_completed(running):
            done.result()
            finished(running[done])
    return paths


def _write_segment(path: str, config: DriveConfig, seed: int, index: int, frames: int) -> None:
    write_records(path, simulate_segment(config, seed, index, frames))
