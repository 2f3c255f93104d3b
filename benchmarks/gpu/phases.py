"""The phases of a measurement: what they are, how long they may take, and what became of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.accuracy import measure_accuracy, measure_paper
from benchmarks.gpu.card import measure_card
from benchmarks.gpu.correctness import check_device
from benchmarks.gpu.drives import make_lakes
from benchmarks.gpu.loading import measure_loading
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.sizes import DRY, REAL
from benchmarks.gpu.tables import tables
from benchmarks.gpu.throughput import measure_throughput
from benchmarks.gpu.workplace import Workplace, carried_teachers
from tests.pipelines.small_teachers import admit_ignorance, write_teachers

# The phases in their order, and their shares of the budget; each may also use what those before left. The paper's
# student has no share of its own: it gets what is left at the end, or all if it is the only one chosen.
PHASES = {"card": 4, "correctness": 18, "throughput": 27, "loading": 14, "accuracy": 37, "paper": 0}
_MEASURE: dict[str, Callable[[Workplace, Rows], None]] = {
    "card": measure_card,
    "correctness": check_device,
    "throughput": measure_throughput,
    "loading": measure_loading,
    "accuracy": measure_accuracy,
    "paper": measure_paper,
}
_SPAWN = multiprocessing.get_context("spawn")
# Seconds that a phase gets to end by itself when its time is up.
_GRACE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and how long it may take."""

    # Seconds for all phases together.
    budget: float = 480.0
    # The metrics and the tables go here.
    out: Path = Path("out/bench/gpu")
    # Every phase at tiny sizes on the CPU: is there anything that would fail on the day?
    dry: bool = False
    # Only these phases; of the budget the others take nothing then.
    phases: tuple[str, ...] = ()
    # Lakes and trainings go here, and are deleted; by default into memory.
    scratch: Path | None = None


def run(options: Options) -> int:
    """Measure, print the tables, and return the exit status."""
    if unknown := sorted(set(options.phases) - set(PHASES)):
        print(f"gpu: --phases {unknown[0]}: there are {', '.join(PHASES)}", file=sys.stderr)
        return 2
    if not options.dry and not torch.cuda.is_available():
        print("gpu: torch sees no CUDA GPU here; rehearse with --dry, or find out why", file=sys.stderr)
        return 2
    began = time.time()
    options.out.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")
    root = options.scratch or (memory if memory.is_dir() and not options.dry else Path(tempfile.gettempdir()))
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="gpu-", dir=root))
    place = Workplace(
        scratch=scratch,
        dry=options.dry,
        sizes=DRY if options.dry else REAL,
        teachers=_dry_teachers(scratch) if options.dry else carried_teachers(),
    )
    lakes = _SPAWN.Process(target=make_lakes, args=(place,))
    lakes.start()
    report: dict[str, Any] = {"options": {"budget": options.budget, "dry": options.dry}, "phases": {}, "status": 0}
    chosen = [name for name in PHASES if name in (options.phases or PHASES)]
    try:
        # A rehearsal looks for what fails; how long it takes on a busy CPU says nothing.
        shares = [1.0] * len(chosen) if options.dry else _shares(chosen)
        for name, ends in zip(chosen, shares, strict=True):
            print(f"== {name}, {time.time() - began:.0f} s", flush=True)
            deadline = began + ends * options.budget
            report["phases"][name] = phase = _phase(name, place, deadline)
            failed = phase["error"] or any(row.get("error") or row.get("passed") is False for row in phase["rows"])
            # A rehearsal in which a phase finds nothing rehearses nothing.
            empty = options.dry and not any(set(row) - {"name", "skipped"} for row in phase["rows"])
            report["status"] = 1 if failed or empty or report["status"] else 0
            report["seconds"] = time.time() - began
            _write(options.out, report)
    finally:
        if lakes.is_alive():
            # With the processes that it started: none of them is of any use now.
            with suppress(ProcessLookupError):
                os.killpg(lakes.pid, signal.SIGKILL)  # type: ignore[arg-type]  # it was started
            lakes.kill()
        lakes.join()
        shutil.rmtree(scratch, ignore_errors=True)
    lines = tables(report)
    (options.out / "gpu.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)
    return int(report["status"])


def _phase(name: str, place: Workplace, deadline: float) -> dict[str, Any]:
    """Run a phase in a process of its own, until it is done or its time is up; return what it wrote."""
    path = place.scratch / f"{name}.json"
    began = time.time()
    process = _SPAWN.Process(target=_in_process, args=(name, place, path, deadline))
    process.start()
    process.join(max(1.0, deadline - time.time()) + _GRACE_S)
    error = ""
    if process.is_alive():
        process.kill()
        process.join()
        error = f"ended after {time.time() - began:.0f} s: its time was up"
    elif process.exitcode:
        told = path.with_suffix(".error")
        error = told.read_text() if told.exists() else f"its process ended with {process.exitcode}"
    rows = json.loads(path.read_text()) if path.exists() else []
    summary = error.strip().splitlines()[-1] if error else ""
    return {"seconds": time.time() - began, "error": summary, "traceback": error, "rows": rows}


def _in_process(name: str, place: Workplace, path: Path, deadline: float) -> None:
    try:
        if place.device.type == "cpu" or name == "correctness":
            # Simulations have the other cores.
            torch.set_num_threads(1 if place.dry else 2)
        rows = Rows(path, deadline)
        _MEASURE[name](place, rows)
    except BaseException:
        path.with_suffix(".error").write_text(traceback.format_exc())
        raise


def _shares(chosen: list[str]) -> list[float]:
    """Return at which share of the budget each of the chosen phases ends."""
    total = sum(PHASES[name] for name in chosen)
    return [sum(PHASES[name] for name in chosen[: place + 1]) / total if total else 1.0 for place in range(len(chosen))]


def _dry_teachers(scratch: Path) -> dict[str, str]:
    """Return two small untrained teachers under the names of the real ones."""
    made = write_teachers(scratch / "teachers")
    for url in made.values():
        admit_ignorance(url)
    return {"spvcnn": made["points"], "mask_rcnn": made["masks"]}


def _write(out: Path, report: dict[str, Any]) -> None:
    partial = out / "gpu.json.unfinished"
    partial.write_text(json.dumps(report, indent=1))
    partial.replace(out / "gpu.json")
