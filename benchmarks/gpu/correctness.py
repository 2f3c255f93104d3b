"""Does the GPU compute what a CPU computes? The checks of `tests.support.device_checks`, on the default networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from benchmarks.gpu.rows import Rows
from benchmarks.gpu.workplace import Workplace
from datalake.lake import Lake
from pipelines.train_teachers import TeacherName, TrainTeachersConfig
from pipelines.train_teachers import run as train_teachers
from student.config import StudentConfig
from teachers.sparse.choice import choose_backend
from teachers.sparse.grid import BackendError
from tests.support import device_checks as checks
from tests.support.device_checks import Check
from tests.support.training_step import branches_of, open_pool, sparse_backends, stream_of, targets_of


def check_device(place: Workplace, rows: Rows) -> None:
    """Make every check, one row each."""
    sizes, device, folder = place.sizes, place.device, place.scratch / "checks"
    backends = []
    for name in sparse_backends():
        try:
            choose_backend(name, device)
            backends.append(name)
        except BackendError as error:
            rows.add(f"backend {name}", skipped=str(error))
    for backend in backends:
        _make(rows, f"SPVNAS golden, {backend}", 8, partial(checks.spvnas_golden, device, backend))

    lake = place.lake("few", rows.left_s)
    stream = stream_of(lake, "val", sizes.image_size, sizes.together, points=True)
    many = next(iter(stream.loader()))
    samples = many[: sizes.checked]
    lidar, mask = place.teachers["spvcnn"], place.teachers["mask_rcnn"]
    config = StudentConfig(branches=branches_of(place.teachers))
    grid = config.grid(sizes.image_size[1], sizes.image_size[0])
    targets = targets_of(open_pool(place.teachers, grid, device), samples)
    for backend in backends:
        _make(rows, f"lidar, {backend}", 8, partial(checks.lidar_teacher, lidar, samples, grid, device, backend))
        if backend != "plain" or place.dry:
            against = partial(checks.backends_agree, lidar, many, grid, device, backend)
            _make(rows, f"lidar, {backend} against plain", 5, against)
    _make(rows, "mask teacher", 5, partial(checks.mask_teacher, mask, samples, grid, device))
    _make(rows, "student", 8, partial(checks.student_step, config, samples, targets, device))
    _make(rows, "bfloat16", 3, partial(checks.bfloat16_step, config, samples, targets, device))
    _make(rows, "repeated step", 3, partial(checks.repeated_step, config, samples, targets, device))
    training = (config, samples, device, folder)
    _make(rows, "resumed training", 6, partial(checks.resumed_training, *training, steps=sizes.curve))
    _make(rows, "curve, muon 0", 20, partial(checks.loss_curve, *training, muon=0.0, steps=sizes.curve))
    _make(rows, "exported program", 15, partial(checks.exported_program, *training, steps=max(30, sizes.curve)))
    for name in get_args(TeacherName):
        _make(rows, f"training of {name}", 12, partial(_teacher_training, place, lake, name, folder))
    _make(rows, "curve, muon 2", 20, partial(checks.loss_curve, *training, muon=2.0, steps=sizes.curve))


def _make(rows: Rows, name: str, needs_s: float, make: Callable[[], list[Check]]) -> None:
    found: list[Check] = []

    def run() -> Mapping[str, Any]:
        found.extend(make())
        return {"checks": len(found)}

    rows.attempt(name, needs_s, run)
    for check in found:
        rows.add(check.name, value=check.value, bound=check.bound, passed=check.passed, note=check.note)


def _teacher_training(place: Workplace, lake: Lake, name: TeacherName, folder: Path) -> list[Check]:
    """A few steps of a teacher's training: does it run on the device, with finite losses and gradients?"""
    steps = 2 if place.dry else 10
    config = TrainTeachersConfig(
        lake=lake.store.url,
        out=str(folder / "teachers"),
        teacher=name,
        image_size=place.sizes.image_size,
        eval_samples=4,
        device=str(place.device),
    )
    spvcnn, mask = config.spvcnn, config.mask_rcnn
    config = replace(
        config,
        spvcnn=replace(spvcnn, measured_samples=8, loop=replace(spvcnn.loop, steps=steps)),
        mask_rcnn=replace(mask, loop=replace(mask.loop, steps=steps)),
    )
    train_teachers(config, Console(quiet=True))
    lines = [json.loads(line) for line in (folder / "teachers" / name / "history.jsonl").read_text().splitlines()]
    norms = [line["gradient_norm"] for line in lines]
    return [Check(name=f"training of {name}: largest gradient", value=max(norms), note=f"{len(lines)} steps")]
