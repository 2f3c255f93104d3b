"""How large everything is: in a measurement on a GPU, and in its rehearsal on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

from datalake.synthetic import DriveConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of data, batches and trainings.

    few, train, val, full_size: segments and frames of each
    images: how many are kept in memory for timings
    checked, together: how many the checks look at, and how many clouds at most go through the lidar teacher at once
    curve: steps of the trainings that are compared with a CPU's
    warmup, timed: steps before and while a training is timed; no row is timed for longer than `row_s` seconds
    batches, paper_batches: images a step
    scored_steps: the most steps of the trainings whose AP50 is told, of `scored_batch` images
    """

    image_size: tuple[int, int]
    drive: DriveConfig
    few: tuple[int, int]
    train: tuple[int, int]
    val: tuple[int, int]
    full_size: tuple[int, int]
    images: int
    checked: int
    together: int
    curve: int
    warmup: int
    timed: int
    row_s: float
    batches: tuple[int, ...]
    paper_batches: tuple[int, ...]
    loader_s: float
    seeds: tuple[int, ...]
    scored_steps: int
    scored_batch: int
    paper_batch: int


REAL = Sizes(
    image_size=(384, 256),
    drive=DriveConfig(frame_rate_hz=2.0),
    few=(24, 3),
    train=(600, 3),
    val=(150, 2),
    full_size=(6, 8),
    images=64,
    checked=8,
    together=16,
    curve=20,
    warmup=5,
    timed=20,
    row_s=6.0,
    batches=(16, 32, 64),
    paper_batches=(8, 16),
    loader_s=2.0,
    seeds=(0, 1, 2),
    scored_steps=1000,
    scored_batch=16,
    paper_batch=8,
)
DRY = Sizes(
    image_size=(96, 64),
    drive=DriveConfig(image_width=96, image_height=64, beams=16, columns=80, frame_rate_hz=2.0),
    few=(4, 3),
    train=(4, 3),
    val=(2, 2),
    full_size=(1, 4),
    images=6,
    checked=4,
    together=8,
    curve=4,
    warmup=1,
    timed=2,
    row_s=30.0,
    batches=(4,),
    paper_batches=(2,),
    loader_s=0.3,
    seeds=(0,),
    scored_steps=2,
    scored_batch=4,
    paper_batch=2,
)
