"""AP50 with and without teachers: the arms of `pipelines/ablate.py`, all at once on one GPU."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu.command import run_command
from benchmarks.gpu.rows import Rows
from benchmarks.gpu.throughput import Setting, students_at_once
from benchmarks.gpu.workplace import Workplace
from pipelines.cache_targets import CacheTargetsConfig, run
from student.config import StudentConfig

# The arms of the ablation, and the names of their metrics.
ARMS = ("none", "classroom")
FIGURES = {
    "AP50": "AP50",
    "AbsRel": "depth/AbsRel",
    "recall@100": "recall@100",
    "lidar R2": "imitation/spvcnn/R2",
    "mask mIoU": "imitation/mask_rcnn/mIoU",
}
# Seconds beside the steps: imports, the look at lake and teachers, and the examination.
_BESIDE_S = 60.0


def measure_accuracy(place: Workplace, rows: Rows) -> None:
    """Train each arm with each seed at the same time, and examine all on streets nobody was trained on."""
    sizes = place.sizes
    lake = place.lake("drives", rows.left_s)

    def answers() -> Mapping[str, Any]:
        grid = StudentConfig().grid(sizes.image_size[1], sizes.image_size[0])
        began = time.time()
        for split in ("train", "val"):
            for name, url in place.teachers.items():
                config = CacheTargetsConfig(
                    lake=str(place.scratch / "drives"), teacher=url, name=name, split=split, grid=grid,
                    image_size=sizes.image_size, device=str(place.device),
                )  # fmt: skip
                run(config, Console(quiet=True))
        count = sum(len(cameras) for commit in lake.commits if commit.split in ("train", "val")
                    for cameras in commit.chunks)  # fmt: skip
        return {"images": count, "images_per_second": count / (time.time() - began)}

    rows.attempt("teachers answer ahead", 20, answers)
    jobs = len(ARMS) * len(sizes.seeds)
    rows.attempt(
        f"{jobs} students at once", 20, partial(students_at_once, place, jobs, Setting(batch=sizes.scored_batch))
    )
    # In memory: those that are scored also read their images.
    shared_ms = 1.3 * rows.rows[-1].get("step_ms", 200.0)
    steps = _affordable(rows.left_s - _BESIDE_S, shared_ms / 1000, sizes.scored_steps)
    _ablate(
        place, rows, "classroom", sizes.seeds, steps, sizes.scored_batch,
        ["--train.cached", *place.teachers],
    )  # fmt: skip


def measure_paper(place: Workplace, rows: Rows) -> None:
    """The paper's own student, with and without teachers: does it learn?"""
    sizes = place.sizes
    if rows.left_s < 2 * _BESIDE_S:
        rows.add("paper study", skipped=f"{rows.left_s:.0f} s left, needs {2 * _BESIDE_S:.0f}")
        return
    place.lake("drives", rows.left_s)
    both = Setting(batch=sizes.paper_batch, preset="paper", teachers=tuple(place.teachers))
    rows.attempt("2 of the paper's students at once", 20, partial(students_at_once, place, 2, both))
    shared_ms = 1.3 * rows.rows[-1].get("step_ms", 400.0)
    steps = _affordable(rows.left_s - _BESIDE_S, shared_ms / 1000, sizes.scored_steps)
    _ablate(place, rows, "paper", sizes.seeds[:1], steps, sizes.paper_batch, ["--train.preset", "paper"])


def _affordable(seconds: float, step_s: float, most: int) -> int:
    """Return how many steps there is time for, at least two and in tens where there are many."""
    count = int(min(most, max(2.0, seconds / step_s)))
    return count if count < 20 else count // 10 * 10


def _ablate(
    place: Workplace, rows: Rows, preset: str, seeds: Sequence[int], steps: int, batch: int, words: Sequence[str]
) -> None:
    sizes, out = place.sizes, place.scratch / f"study-{preset}"
    jobs = len(ARMS) * len(seeds)
    width, height = sizes.image_size
    arguments = [
        "--train.lake", str(place.scratch / "drives"), "--train.out", str(out),
        "--train.teachers", *(f"{name}={url}" for name, url in place.teachers.items()),
        "--train.image-size", str(width), str(height), "--train.batch", str(batch), "--train.device", str(place.device),
        "--arms", *ARMS, "--seeds", *map(str, seeds), "--labelled-fractions", "1.0", "--steps", str(steps),
        "--parallel", str(jobs), "--eval-split", "val",
        *(["--train.min-anchor-recall", "0"] if place.dry else []), *words,
    ]  # fmt: skip
    began = time.time()
    status, output = run_command("pipelines.ablate", arguments, rows.left_s - 5)
    took_s = time.time() - began
    found = _results(out)
    for arm in ARMS:
        by_seed = {int(seed): metrics for seed, metrics in found.get(arm, {}).items()}
        rows.add(
            f"{preset} {arm}",
            steps=steps,
            batch=batch,
            seeds=sorted(by_seed),
            **{label: [by_seed[seed].get(name) for seed in sorted(by_seed)] for label, name in FIGURES.items()},
            training_s=[by_seed[seed]["training/seconds"] for seed in sorted(by_seed)],
            curves=_curves(out, arm, seeds),
        )
    if status:
        rows.add(f"{preset} study", error=f"ended with {status} after {took_s:.0f} s: {output[-300:]}", output=output)
    else:
        rows.add(f"{preset} study", took_s=round(took_s, 1), students=jobs)


def _results(out: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return arm -> seed -> metrics of what is finished."""
    path = out / "ablation-val.json"
    if not path.exists():
        return {}
    ((_, found),) = json.loads(path.read_text()).items()
    return dict(found)


def _curves(out: Path, arm: str, seeds: Sequence[int]) -> dict[str, list[list[float]]]:
    """Return of each seed some thirty pairs of a step and the sum of its losses, over the steps that were done."""
    curves = {}
    for seed in seeds:
        for path in out.glob(f"*/{arm}-{seed}/history.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            every = max(1, len(lines) // 30)
            curves[str(seed)] = [
                [line["step"], round(sum(value for name, value in line.items() if name.startswith("loss/")), 4)]
                for line in lines[::every]
            ]
    return curves
