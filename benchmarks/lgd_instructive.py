"""How good are the maps that LGD made of labels? What a run's student finds in them, beside what it finds in images.

    python -m benchmarks.lgd_instructive --run RUN --lake LAKE

The instructive maps are made of the labels that are asked for. Where the AP50 in them is not at least .2 above the
student's own, the encoder did not learn to say them, and a distillation from it says little. Ends with 1 there.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console

from datalake.lake import open_lake
from datalake.sample import Sample
from pipelines.data import Frames
from pipelines.device import device_of
from student.checkpoint import read_student
from student.detector import Student
from student.distillation.lgd import LGD
from student.distillation.trained import read_lgd
from student.evaluation.detection import DetectionScores

_LEAST_GAIN = 0.2


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    # The folder that train.py wrote to with --distill lgd.
    run: str
    # The lake, and the split to look at.
    lake: str
    split: str = "val"
    # Images at once.
    batch: int = 6
    device: str = "auto"
    # Where the metrics go, as JSON.
    output: Path = Path("out/bench/lgd_instructive.json")


def instructive_ap50(student: Student, method: LGD, batches: Iterable[Sequence[Sample]]) -> dict[str, float]:
    """Return the AP50 of what the student finds in images (`student`) and in the maps of LGD (`maps`).

    Both in float32, on the device of the student's and the method's weights.
    """
    device = next(student.parameters()).device
    scores = {"student": DetectionScores(), "maps": DetectionScores()}
    for batch in batches:
        images = torch.stack([sample.image for sample in batch]).to(device)
        found = {
            "student": student(images),
            "maps": method.detect(student, images, [sample.objects for sample in batch]),
        }
        for name, each in found.items():
            for one, sample in zip(each, batch, strict=True):
                scores[name].add(one.to("cpu"), sample.objects)
    return {name: each.metrics()["AP50"] for name, each in scores.items()}


def run(options: Options, console: Console) -> int:
    """Measure, print both precisions, and return the exit status."""
    student, checkpoint = read_student(options.run)
    method = read_lgd(student, checkpoint)
    read = {name: ast.literal_eval(str(checkpoint.fingerprint[name])) for name in ("cameras", "image_size")}
    frames = Frames(lake=open_lake(options.lake), split=options.split, points=False, **read)
    device = device_of(options.device)
    batches = frames.stream(options.batch, shuffle=False).loader()
    found = instructive_ap50(student.to(device), method.to(device), batches)
    gain = found["maps"] - found["student"]
    console.print(
        f"AP50 after {checkpoint.step:,} steps: the student's {found['student']:.3f}, in its instructive maps"
        f" {found['maps']:.3f} ({gain:+.3f}, expected at least {_LEAST_GAIN:+.1f})",
        soft_wrap=True,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    about = {**asdict(options), "output": str(options.output)}
    options.output.write_text(json.dumps({"options": about, "step": checkpoint.step, "AP50": found}, indent=1))
    return 0 if gain >= _LEAST_GAIN else 1


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Options, description=__doc__), Console()))
