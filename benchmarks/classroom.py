"""Does the classroom learn, and does it help? The study of `pipelines/ablate.py` on simulated drives, from nothing.

    python -m benchmarks.classroom                 # small: one seed, minutes
    python -m benchmarks.classroom --form study    # the sizes of benchmarks/classroom.md; hours on two cores
    python -m benchmarks.classroom --form long     # more of everything; made for a GPU

Simulates drives, builds their lake, trains teachers on segments of their own, then trains the arms. Ends with 1 where
the lidar branch does not imitate what its teacher says of the very image: its R² on frames nobody was trained on has
to reach 0.35, and to be 0.15 above that of a student that was given what the teacher says of other images.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from pipelines import ablate
from pipelines.demo import IMAGE_SIZE, DemoConfig, build, cached_as, teach
from pipelines.train_config import TrainConfig
from training.loop import LoopConfig

_LIDAR_R2 = "imitation/spvcnn/R2"
_LEAST_R2, _LEAST_ABOVE_SHUFFLED = 0.35, 0.15


@dataclass(frozen=True, kw_only=True)
class Form:
    """How large the study is: drives and teachers as in the demo, and the arms."""

    demo: DemoConfig
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    fractions: tuple[float, ...]
    steps: tuple[int, ...]


_FORMS = {
    "small": Form(
        demo=DemoConfig(teach_segments=60, train_segments=80, val_segments=20, lidar_steps=80, mask_steps=200),
        arms=("none", "classroom", "shuffled"),
        seeds=(0,),
        fractions=(0.1,),
        steps=(200,),
    ),
    "study": Form(
        demo=DemoConfig(teach_segments=330, train_segments=600, val_segments=100, lidar_steps=300, mask_steps=1400),
        arms=(),
        seeds=(0, 1, 2),
        fractions=(0.025, 0.1, 1.0),
        steps=(400, 400, 1000),
    ),
    "long": Form(
        demo=DemoConfig(teach_segments=300, train_segments=800, val_segments=100, lidar_steps=600, mask_steps=4000),
        arms=(),
        seeds=(0, 1, 2),
        fractions=(0.025, 0.1, 1.0),
        steps=(1000, 1500, 6000),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    form: Literal["small", "study", "long"] = "small"
    # Drives, lake, teachers, students and tables go here.
    output: Path = Path("out/bench/classroom")


def run(options: Options, console: Console) -> int:
    """Run the study and return the exit status."""
    form, out = _FORMS[options.form], options.output.absolute() / options.form
    demo = replace(form.demo, out=out)
    lake_url = str(out / "lake")
    if not build(demo, lake_url, console):
        return 1
    teachers = teach(demo, lake_url, console)
    study = ablate.AblateConfig(
        train=TrainConfig(
            lake=lake_url,
            out=str(out / "study"),
            teachers=tuple(f"{name}={folder}" for name, folder in teachers.items()),
            image_size=IMAGE_SIZE,
            cached=tuple(f"{name}={cached_as(folder)}" for name, folder in teachers.items()),
            loop=LoopConfig(),
        ),
        arms=form.arms,
        seeds=form.seeds,
        labelled_fractions=form.fractions,
        steps=form.steps,
    )
    ablate.run(study, console)
    results = json.loads((out / f"study/ablation-{study.eval_split}.json").read_text())
    kept = True
    for fraction, arms in results.items():
        for seed in arms["classroom"]:
            real, shuffled = (arms[arm][seed][_LIDAR_R2] for arm in ("classroom", "shuffled"))
            kept &= real >= _LEAST_R2 and real - shuffled >= _LEAST_ABOVE_SHUFFLED
            console.print(
                f"{float(fraction):.1%} labelled, seed {seed}: R2 {real:.2f}, from other images {shuffled:.2f}"
            )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Options, description=__doc__), Console()))
