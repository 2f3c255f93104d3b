"""The modules that a batch enters between the loader and the checkpoint, in the order of their first lines.

    python -m benchmarks.module_walk

A tiny student trains for two steps with two tiny teachers, from a tiny lake, once to import everything and then again
under `sys.setprofile`: from the first call in the loader to the end of the second step, with its checkpoint, every
module of the project in which a line runs is written down where it first does. What a teacher runs to answer is
counted apart, since nobody has to read it to follow the batch. A turn back is a module of a package that the walk had
left before: student, teachers, student is one. Fewer of both are better; ends with 1 where there are more than now.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import tyro
from rich.console import Console

from datalake.synthetic import DriveConfig, write_drives
from pipelines.train import train_worker
from pipelines.train_config import TrainConfig
from pipelines.train_setup import prepare_training
from tests.drives import DRIVE_CAMERAS, build_drives
from tests.pipelines.small_teachers import admit_ignorance, write_teachers
from training.distributed import Distributed
from training.loop import LoopConfig

_PACKAGES = ("datalake", "training", "teachers", "student", "pipelines")
# Where the walk begins.
_FIRST = ("datalake.loader", "__iter__")
_STEPS = 2
# What was counted when this was written.
_MOST_MODULES, _MOST_TURNS = 45, 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """Count the modules that a batch enters."""

    out: Path = Path("out/bench/module_walk.json")


@dataclass(frozen=True, slots=True)
class Entry:
    """A module where the walk first enters it; `turn` tells whether it goes back into a package for that.

    by_teacher: only to compute a teacher's answer
    """

    module: str
    turn: bool
    by_teacher: bool


class Walk:
    """Writes down, as a profiler of every thread, which modules of the project run from the loader on."""

    def __init__(self) -> None:
        self.first_entries: dict[str, None] = {}
        self.of_teachers: dict[str, None] = {}
        self._answering = threading.local()

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Note what is called, and what is returned to: it may have been called before the walk began."""
        if event not in ("call", "return"):
            return
        depth = getattr(self._answering, "depth", 0)
        is_answer = frame.f_code.co_name == "predict" and _module(frame).startswith("teachers.")
        if event == "call":
            # The teacher itself is on the way, what it calls is not.
            self._note(frame, within=depth > 0)
            self._answering.depth = depth + is_answer
        else:
            self._answering.depth = depth - (is_answer and depth > 0)
            if frame.f_back is not None:
                self._note(frame.f_back, within=self._answering.depth > 0)

    def start(self) -> None:
        """Profile this thread, and those that it starts."""
        threading.setprofile(self)
        sys.setprofile(self)

    @staticmethod
    def stop() -> None:
        """Profile no more."""
        sys.setprofile(None)
        threading.setprofile(None)

    def entries(self) -> list[Entry]:
        """Return the walk."""
        entries: list[Entry] = []
        seen: list[str] = []
        for module in self.first_entries:
            package = module.partition(".")[0]
            entries.append(Entry(module, package in seen[:-1], by_teacher=False))
            if package in seen:
                seen.remove(package)
            seen.append(package)
        return entries + [Entry(it, turn=False, by_teacher=True) for it in self.of_teachers if it not in seen]

    def _note(self, frame: FrameType, *, within: bool) -> None:
        module = _module(frame)
        begun = bool(self.first_entries) or (module, frame.f_code.co_name) == _FIRST
        if begun and module.partition(".")[0] in _PACKAGES:
            (self.of_teachers if within else self.first_entries).setdefault(module)


def walk_of_a_training(folder: Path) -> list[Entry]:
    """Return the modules that two steps of a training enter."""
    drives = DriveConfig(image_width=96, image_height=64, beams=16, columns=80, cameras=DRIVE_CAMERAS)
    sources = write_drives(str(folder / "drives"), drives, segments=2, frames=11, seed=3)
    build_drives(sources, str(folder / "lake"))
    teachers = write_teachers(folder / "teachers")
    for url in teachers.values():
        admit_ignorance(url)
    walk = Walk()
    for name in ("imported", "walked"):
        config = TrainConfig(
            lake=str(folder / "lake"),
            out=str(folder / name),
            teachers=tuple(f"{teacher}={url}" for teacher, url in teachers.items()),
            image_size=(96, 64),
            batch=2,
            min_anchor_recall=0.0,
            loop=LoopConfig(steps=_STEPS, warmup=0.0, checkpoint_every=1),
            device="cpu",
        )
        plan = prepare_training(config, Console(quiet=True), lambda *_: None)

        def on_step(step: int, _metrics: Mapping[str, float]) -> None:
            if step == _STEPS:
                walk.stop()

        if name == "walked":
            walk.start()
        try:
            train_worker(plan, Distributed(), on_step)
        finally:
            walk.stop()
    return walk.entries()


def show(entries: Sequence[Entry], console: Console) -> None:
    """Print the walk, a line for each stretch within a package, and what the teachers run."""
    for number, entry in enumerate(one for one in entries if not one.by_teacher):
        console.print(f"{number + 1:>3}  {entry.module}{'   turns back' if entry.turn else ''}", highlight=False)
    inside = [entry.module for entry in entries if entry.by_teacher]
    console.print(f"within the teachers: {', '.join(inside)}", highlight=False, soft_wrap=True)


def run(options: Options, console: Console) -> int:
    """Count, print the walk, and return the exit status."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        entries = walk_of_a_training(Path(folder))
    if not entries:
        console.print(f"{'.'.join(_FIRST)} was never called: the walk has to begin elsewhere")
        return 1
    show(entries, console)
    modules, turns = sum(not one.by_teacher for one in entries), sum(one.turn for one in entries)
    console.print(f"{modules} modules (at most {_MOST_MODULES}), {turns} turns back (at most {_MOST_TURNS})")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(entry) for entry in entries], indent=1))
    return 0 if modules <= _MOST_MODULES and turns <= _MOST_TURNS else 1


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Options, description=__doc__), Console()))
