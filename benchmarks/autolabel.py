"""The study of auto-labels: does a student learn more from what two teachers agree on?

    python -m benchmarks.autolabel --lake LAKE --mask FOLDER --lidar FOLDER --out OUT

Labels `train` by both teachers (`autolabel_both`) and by the mask teacher alone (`autolabel_masks`), judges the labels
on `test`, and trains a student for each arm and seed with a share of the human labels: none, imitation, the auto-labels
of either table, these beside imitation, those of another image, and the ceiling, human labels of all frames in as many
steps. All students are evaluated on `test`. Each command is `autolabel.py` or `ablate.py` and prints what it runs;
started again after an interruption, all go on. Ends with a table, which is also in OUT/autolabel.json.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from datalake.cli import run_command
from datalake.errors import UserError
from tests.support.data import ROOT

_SHOWN = ("AP50", "AP50/VEHICLE", "AP50/PEDESTRIAN", "AP50/CYCLIST", "depth/AbsRel", "depth/AbsRel@recall25")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The lake, the teachers, and how much is trained."""

    # A lake with the splits train, val and test; a local path.
    lake: str
    # The folder of the mask teacher.
    mask: str
    # The folder of the lidar teacher.
    lidar: str
    # Where the students go, and the metrics as JSON.
    out: Path
    # Share of the segments that keeps its human labels.
    fraction: float = 0.025
    # Of every student.
    steps: int = 400
    # Of every arm.
    seeds: tuple[int, ...] = (0, 1, 2)
    # Seeds of the control whose auto-labels are another image's.
    control_seeds: tuple[int, ...] = (0,)
    # Of the labels so many are to be right, by their class.
    precision: float = 0.8
    # Further options of `ablate.py`, as in "--train.device cpu --parallel 1".
    study: str = ""


def run(options: Options, console: Console) -> int:
    """Label, train and evaluate; print the table and return exit status 0."""
    teachers = [f"mask_rcnn={options.mask}", f"spvcnn={options.lidar}"]
    for name, some in (("both", teachers), ("masks", teachers[:1])):
        words = ["--lake", options.lake, "--name", name, "--precision", str(options.precision), "--judge", "test"]
        _call(console, "autolabel.py", [*words, "--local", "--teachers", *some])
    arms = {
        "both": ("none", "imitation", "autolabel", "autolabel+imitation"),
        "masks": ("autolabel",),
    }
    for name, of_table in arms.items():
        _study(options, console, name, teachers, of_table, options.fraction, options.seeds)
    _study(options, console, "shuffled", teachers, ("autolabel-shuffled",), options.fraction, options.control_seeds)
    _study(options, console, "ceiling", teachers, ("none",), 1.0, options.seeds)
    found = {name: _results(options.out / name) for name in (*arms, "shuffled", "ceiling")}
    (options.out / "autolabel.json").write_text(json.dumps(found, indent=1))
    console.print("| labels | arm | " + " | ".join(_SHOWN) + " |")
    console.print("|" + "---|" * (2 + len(_SHOWN)))
    for name, by_arm in found.items():
        for arm, by_seed in by_arm.items():
            values = [[metrics[one] for metrics in by_seed.values() if one in metrics] for one in _SHOWN]
            cells = (f"{statistics.fmean(some):.3f} ({len(some)})" if some else "-" for some in values)
            console.print(f"| {name} | {arm} | {' | '.join(cells)} |", soft_wrap=True, highlight=False)
    return 0


def _study(
    options: Options,
    console: Console,
    name: str,
    teachers: Sequence[str],
    arms: Sequence[str],
    fraction: float,
    seeds: Sequence[int],
) -> None:
    table = "masks" if name == "masks" else "both"
    words = ["--train.lake", options.lake, "--train.out", str(options.out / name), "--train.teachers", *teachers]
    words += ["--train.auto-labels", table, "--eval-split", "test", "--labelled-fractions", str(fraction)]
    words += ["--steps", str(options.steps), "--seeds", *map(str, seeds), *shlex.split(options.study)]
    _call(console, "ablate.py", [*words, "--arms", *arms])


def _call(console: Console, script: str, words: Sequence[str]) -> None:
    console.print(shlex.join(["python", f"pipelines/{script}", *words]), soft_wrap=True, markup=False, highlight=False)
    status = subprocess.run([sys.executable, str(ROOT / "pipelines" / script), *words], check=False).returncode
    if status:
        raise UserError(f"pipelines/{script} ended with {status}; run the same command again to go on")


def _results(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return arm -> seed -> metrics of the study's only share of labels."""
    (results,) = json.loads((folder / "ablation-test.json").read_text()).values()
    return dict(results)


def main() -> None:
    """Run from the command line."""
    run_command("autolabel", Options, run, __doc__, prog="python -m benchmarks.autolabel")


if __name__ == "__main__":
    main()
