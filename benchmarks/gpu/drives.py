"""The lakes of a measurement, made beside it: simulated drives, and full-size frames of the one real record."""

from __future__ import annotations

import os
import traceback
from functools import partial

import torch

from benchmarks.fullsize import write_fullsize_segment
from benchmarks.gpu.workplace import Workplace
from datalake.build import BuildConfig
from datalake.fanout import build_lake
from datalake.process_tasks import run_in_processes
from datalake.synthetic import write_drives
from tests.support.data import find_data

# Cores that are left to the measurement.
_LEFT = 2
# Of other seeds, other streets. The carried teachers learned on seed 3.
_SEEDS = {"teach": 11, "few": 12, "train": 1, "val": 4}
_FULL_SIZE = "waymo_fullsize_raycast.tfrecord"


def make_lakes(place: Workplace) -> None:
    """Make the lakes `few` (splits teach and val), `drives` (train and val) and `full_size` (train), in this order."""
    try:
        # A process group of its own, which whoever started it can end with all that it starts.
        os.setsid()
        torch.set_num_threads(1)
        few, sizes = place.sizes.few, place.sizes
        _simulate(place, "few", {"teach": (few, _SEEDS["teach"]), "val": (few, _SEEDS["few"])})
        _simulate(place, "drives", {"train": (sizes.train, _SEEDS["train"]), "val": (sizes.val, _SEEDS["val"])})
        _full_size(place)
    except BaseException:
        place.fail(traceback.format_exc())
        raise


def _processes() -> int:
    return max(1, len(os.sched_getaffinity(0)) - _LEFT)


def _simulate(place: Workplace, name: str, splits: dict[str, tuple[tuple[int, int], int]]) -> None:
    for split, ((segments, frames), seed) in splits.items():
        sources = write_drives(
            str(place.scratch / f"{name}-records" / split),
            place.sizes.drive,
            segments=segments,
            frames=frames,
            seed=seed,
            workers=_processes(),
        )
        _build(place, name, split, sources)
    place.mark(name)


def _full_size(place: Workplace) -> None:
    if (source := find_data(_FULL_SIZE)) is None:
        raise FileNotFoundError(f"{_FULL_SIZE} is missing; run benchmarks/gpu/carry.sh")
    segments, frames = place.sizes.full_size
    folder = place.scratch / "full-size-records"
    folder.mkdir()
    paths = [str(folder / f"{number}.tfrecord") for number in range(segments)]
    calls = [(path, (path, frames, str(source), number)) for number, path in enumerate(paths)]
    for path, result in run_in_processes(write_fullsize_segment, calls, _processes()):
        if isinstance(result, Exception):
            raise RuntimeError(f"{path}: {result}") from result
    _build(place, "full_size", "train", paths)
    place.mark("full_size")


def _build(place: Workplace, name: str, split: str, sources: list[str]) -> None:
    report = build_lake(
        sources,
        str(place.scratch / name),
        BuildConfig(split=split, cameras=("FRONT",)),
        lambda _: None,
        run=partial(run_in_processes, processes=_processes()),
    )
    if report.failures:
        raise RuntimeError(f"lake {name}: {report.failures}")
