"""How fast the project's own training loop is on a device, and what a step is made of."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.card import wait
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.workplace import Workplace
from datalake.sample import Sample
from student.config import AnchorShapes, StudentConfig
from teachers.pool import TeacherPool
from teachers.sparse.choice import BackendName, choose_backend
from teachers.sparse.grid import BackendError
from tests.support.training_step import (
    EnoughError,
    KeptAnswers,
    branches_of,
    build_objective,
    in_turn,
    open_pool,
    sparse_backends,
    stream_of,
    train_in_memory,
)
from training.precision import Precision

# What the paper's authors report of their own training.
PAPER_IMAGES_PER_SECOND = 13.3
_SPAWN = multiprocessing.get_context("spawn")
# Steps whose parts are timed one by one, with the device waited for in between.
_TAKEN_APART = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row: which student trains how.

    teachers: names of those who are asked; `kept` answers were asked before and are on the device
    """

    batch: int
    precision: Precision = "bfloat16"
    teachers: tuple[str, ...] = ()
    kept: bool = False
    backend: BackendName = "auto"
    compiled: bool = False
    preset: Literal["classroom", "paper"] = "classroom"

    @property
    def name(self) -> str:
        """A name for tables."""
        parts = [self.preset if self.preset == "paper" else "", *self.teachers, "kept" if self.kept else ""]
        parts += [self.backend if self.backend != "auto" else "", "compiled" if self.compiled else "", self.precision]
        return " ".join(part for part in parts if part) + f" B{self.batch}"


def all_settings(place: Workplace) -> list[Setting]:
    """Return all rows, those that matter most first."""
    device, batches = place.device, place.sizes.batches
    lidar, mask = "spvcnn", "mask_rcnn"
    both = (lidar, mask)
    middle = batches[len(batches) // 2]
    rows = [Setting(batch=batch) for batch in batches]
    rows += [Setting(batch=batch, teachers=both) for batch in batches]
    rows += [Setting(batch=middle, compiled=True)]
    rows += [Setting(batch=batch, preset="paper") for batch in place.sizes.paper_batches]
    rows += [Setting(batch=middle, teachers=both, kept=True)]
    rows += [Setting(batch=middle, teachers=(name,)) for name in both]
    rows += [
        Setting(batch=middle, teachers=(lidar,), backend=name) for name in sparse_backends() if _runs(name, device)
    ]
    rows += [Setting(batch=batch, precision="float32") for batch in batches]
    rows += [Setting(batch=batch, teachers=(name,)) for batch in batches if batch != middle for name in both]
    rows += [Setting(batch=batches[-1], compiled=True)] if len(batches) > 1 else []
    return rows


def measure_throughput(place: Workplace, rows: Rows) -> None:
    """Time every setting, one row each."""
    sizes, device = place.sizes, place.device
    place.lake("few", rows.left_s)
    samples = _samples(place)
    # The first training makes the device's context and loads its kernels.
    rows.attempt("first steps", 5, partial(_measure, place, samples, Setting(batch=sizes.batches[0]), profiled=False))
    for setting in all_settings(place):
        # To compile, forth and back, takes a minute on a machine that has never done it.
        needs_s = 12 * sizes.row_s if setting.compiled and not place.dry else 1.5 * sizes.row_s
        rows.attempt(setting.name, needs_s, partial(_measure, place, samples, setting))
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _runs(name: BackendName, device: torch.device) -> bool:
    try:
        choose_backend(name, device)
    except BackendError:
        return False
    return True


def students_at_once(place: Workplace, count: int, setting: Setting) -> Mapping[str, Any]:
    """Train so many students beside each other, each in a process, on samples in memory; return what all do together.

    step_ms: of the slowest
    """
    queue, barrier = _SPAWN.Queue(), _SPAWN.Barrier(count)
    processes = [_SPAWN.Process(target=_beside, args=(place, setting, barrier, queue)) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        told = [queue.get(timeout=60 + place.sizes.row_s) for _ in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    if wrong := [one for one in told if isinstance(one, str)]:
        raise RuntimeError(wrong[0])
    return {
        "images_per_second": sum(setting.batch / one for one in told),
        "step_ms": 1000 * max(told),
        "students": count,
    }


def _beside(place: Workplace, setting: Setting, barrier: Any, queue: Any) -> None:
    """Put the seconds of a step into the queue, or what went wrong."""
    try:
        torch.set_num_threads(1)
        queue.put(_measure(place, _samples(place), setting, beside=barrier)["step_ms"] / 1000)
    except BaseException as error:
        barrier.abort()
        queue.put(f"{type(error).__name__}: {error}")
        raise


def _samples(place: Workplace) -> list[Sample]:
    lake = place.lake("few", 60)
    stream = stream_of(lake, "val", place.sizes.image_size, place.sizes.images, points=True)
    return next(iter(stream.loader()))


def _measure(
    place: Workplace, samples: Sequence[Sample], setting: Setting, *, profiled: bool = True, beside: Any | None = None
) -> Mapping[str, Any]:
    """Train for some steps on samples in memory: first as it is, then taken apart, then one step profiled.

    beside: where those that are timed at once wait for each other; they are timed for as long as all others are
    """
    sizes, device = place.sizes, place.device
    asked = {name: place.teachers[name] for name in setting.teachers}
    branches = branches_of(place.teachers)
    paper = setting.preset == "paper"
    config = StudentConfig.paper(branches, AnchorShapes()) if paper else StudentConfig(branches=branches)
    grid = config.grid(sizes.image_size[1], sizes.image_size[0])
    objective = build_objective(config)
    if setting.compiled:
        # In a rehearsal only the graph is made: to compile it for a CPU takes minutes.
        objective.student.backbone.compile(backend="eager" if place.dry else "inductor")
    pool: TeacherPool | KeptAnswers | None = open_pool(asked, grid, device, setting.backend) if asked else None
    if setting.kept:
        assert isinstance(pool, TeacherPool)
        pool = KeptAnswers(pool, in_turn(samples, setting.batch))
    timed = sizes.timed if beside is None or place.dry else 1 << 20
    watch = _Watch(
        objective, device, sizes.warmup, timed, sizes.row_s, profiled=profiled and beside is None, beside=beside
    )
    name = "".join(letter if letter.isalnum() else "-" for letter in setting.name)
    with watch.hooks:
        train_in_memory(
            objective, samples, place.scratch / "timed" / f"{name}-{time.time_ns()}", device,
            batch=setting.batch, steps=1 << 20, precision=setting.precision, pool=pool, on_step=watch.after_step,
        )  # fmt: skip
    return watch.metrics(setting.batch)


class _Watch:
    """Follows a training step by step: warm-up, timed steps, steps taken apart, a profiled step, the end."""

    def __init__(
        self, objective: nn.Module, device: torch.device, warmup: int, timed: int, most_s: float,
        *, profiled: bool, beside: Any | None,
    ) -> None:  # fmt: skip
        self._beside = beside
        self._device, self._warmup, self._timed, self._most_s, self._profiled = device, warmup, timed, most_s, profiled
        self._began = self._ended = 0.0
        self._steps = 0
        self._apart: list[dict[str, float]] = []
        self._marks: dict[str, float] | None = None
        self._events: EventList | None = None
        self._peak = 0
        self._profile = profile(activities=_activities(device), acc_events=True)
        self.hooks = ExitStack()
        for handle in (
            objective.register_forward_pre_hook(lambda *_: self._mark("forward begins")),
            objective.register_forward_hook(lambda *_: self._mark("forward ends")),
            register_optimizer_step_pre_hook(lambda *_: self._mark("optimizer begins", first=True)),
            register_optimizer_step_post_hook(lambda *_: self._mark("optimizer ends")),
        ):
            self.hooks.callback(handle.remove)
        self._next: Callable[[int], None] = self._warm

    def after_step(self, step: int, _values: Mapping[str, float]) -> None:
        """What the loop calls."""
        self._next(step)

    def metrics(self, batch: int) -> dict[str, Any]:
        """Return what was found; raises RuntimeError where the training ended before it was timed."""
        if not self._steps:
            raise RuntimeError("the training ended before a step was timed")
        step_s = (self._ended - self._began) / self._steps
        found: dict[str, Any] = {
            "images_per_second": batch / step_s,
            "of_paper": batch / step_s / PAPER_IMAGES_PER_SECOND,
            "step_ms": 1000 * step_s,
            "steps": self._steps,
        }
        for name in self._apart[0] if self._apart else ():
            found[name] = statistics.median(one[name] for one in self._apart)
        if self._device.type == "cuda":
            found["peak_gib"] = self._peak / 2**30
        if self._events is not None:
            found |= counted(self._events)
        return found

    def _warm(self, step: int) -> None:
        if step == self._warmup:
            if self._beside is not None:
                self._beside.wait(60)
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._device)
            self._began = self._now()
            self._next = self._time

    def _time(self, step: int) -> None:
        self._steps = step - self._warmup
        # The device is waited for at the end alone: a loop that runs ahead of it must be free to.
        if self._steps < self._timed and time.perf_counter() - self._began < self._most_s:
            return
        self._ended = self._now()
        if self._device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self._device)
        if not self._profiled:
            raise EnoughError
        self._marks = {"begins": self._now()}
        self._next = self._take_apart

    def _take_apart(self, _step: int) -> None:
        marks = self._marks
        assert marks is not None
        ends = self._now()
        self._apart.append(
            {
                "teachers_ms": 1000 * (marks["forward begins"] - marks["begins"]),
                "forward_ms": 1000 * (marks["forward ends"] - marks["forward begins"]),
                "backward_ms": 1000 * (marks["optimizer begins"] - marks["forward ends"]),
                "optimizer_ms": 1000 * (marks["optimizer ends"] - marks["optimizer begins"]),
                "rest_ms": 1000 * (ends - marks["optimizer ends"]),
            }
        )
        self._marks = {"begins": self._now()}
        if len(self._apart) == _TAKEN_APART:
            self._marks = None
            self._profile.start()
            self._next = self._end

    def _end(self, _step: int) -> None:
        self._profile.stop()
        self._events = self._profile.events()
        raise EnoughError

    def _mark(self, name: str, *, first: bool = False) -> None:
        if self._marks is not None and not (first and name in self._marks):
            self._marks[name] = self._now()

    def _now(self) -> float:
        wait(self._device)
        return time.perf_counter()


def counted(events: EventList) -> dict[str, Any]:
    """Return of the events of one step: launches, waits, copies to the host, and what keeps the device busy longest.

    Waits are the calls in which the host waits for the device. Profiling itself waits once at its end.
    """
    calls: Counter[str] = Counter()
    kernels: dict[str, float] = defaultdict(float)
    launched = 0
    for event in events:
        if event.device_type == DeviceType.CUDA:
            # Ranges that torch names span the kernels in them.
            if not event.is_user_annotation:
                kernels[event.name] += event.time_range.elapsed_us()
                launched += 1
        elif event.name.startswith(("cuda", "cu")):
            calls[event.name] += 1
    return {
        "launches": sum(count for name, count in calls.items() if "Launch" in name),
        "syncs": sum(count for name, count in calls.items() if "Synchronize" in name),
        "to_host": sum(1 for event in events if event.name.startswith("Memcpy DtoH")),
        "device_events": launched,
        "device_ms": sum(kernels.values()) / 1000,
        "calls": dict(calls.most_common(12)),
        "longest": [{"name": name[:90], "ms": time_us / 1000} for name, time_us in _longest(kernels)],
    }


def _longest(kernels: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(kernels.items(), key=lambda item: -item[1])[:12]


def _activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
