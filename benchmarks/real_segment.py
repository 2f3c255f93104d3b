"""Does the student fit real images? One Waymo segment, trained on its first 100 frames, examined on its last 20.

    python -m benchmarks.real_segment

The 130 real front images have labels and no lidar, so no teacher takes part and no depth is learned. One segment
proves that real pixels and real labels can be learned from and recognized one second later; it says nothing of other
streets: the last frames show the cars, the light and the road of the first.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console

from datalake.build import BuildConfig, build_segment
from datalake.lake import open_lake, prepare_lake, publish_snapshot
from datalake.plan import plan_segments
from datalake.sources.formats import index_source
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.tfrecord import RecordFile, Slot, write_records
from datalake.store import Store
from pipelines.data import Frames
from pipelines.train import run as run_training
from pipelines.train_config import TrainConfig
from student.checkpoint import read_student
from student.evaluation.run import evaluate_student
from training.loop import LoopConfig

_DATA = Path(__file__).resolve().parents[2] / "shared/data"
_PARTS = {"train": range(100), "val": range(110, 130)}
_SHOWN = ("AP50", "AP50/VEHICLE", "AP50/PEDESTRIAN", "AP50/CYCLIST", "AP50/>16px", "recall@100", "recall@100/>16px")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    # The real segment.
    source: Path = _DATA / "waymo_front_segment.tfrecord"
    # Where lake, student and metrics go.
    output: Path = Path("out/bench/real_segment")
    steps: int = 500
    seeds: tuple[int, ...] = (0,)


def build(source: Path, folder: Path) -> str:
    """Build a lake whose splits are the two parts of the segment, each under a name of its own; return its URL."""
    url = str((folder / "lake").absolute())
    store = Store(url)
    prepare_lake(store, "quantised")
    with RecordFile(str(source)) as file:
        frames = [file.read(slot) for slot in file.slots() if isinstance(slot, Slot)]
    for split, numbers in _PARTS.items():
        records = []
        for number in numbers:
            frame = dataset_pb2.Frame.FromString(frames[number])
            frame.context.name = f"{frame.context.name}-{split}"
            records.append(frame.SerializeToString())
        part = folder / f"{split}.tfrecord"
        write_records(str(part.absolute()), records)
        for plan in plan_segments([index_source(str(part.absolute()))]):
            report = build_segment(plan, url, BuildConfig(split=split, cameras=("FRONT",)))
            if report.outcome not in ("committed", "present"):
                raise RuntimeError(f"{split}: {report.reason}")
    publish_snapshot(store)
    return url


def run(options: Options, console: Console) -> int:
    """Train and examine each seed, print the metrics, and return the exit status 0."""
    options.output.mkdir(parents=True, exist_ok=True)
    url = build(options.source, options.output)
    metrics = {}
    for seed in options.seeds:
        out = str((options.output / f"student-{seed}").absolute())
        # At 384 pixels half of the real boxes are smaller than any anchor can be on a grid of 4 pixels.
        config = TrainConfig(lake=url, out=out, seed=seed, min_anchor_recall=0.2, loop=LoopConfig(steps=options.steps))
        run_training(config, console)
        student, _ = read_student(out)
        for split in _PARTS:
            frames = Frames(lake=open_lake(url), split=split, cameras=("FRONT",), image_size=(384, 256), points=False)
            found = evaluate_student(student, frames.stream(5, shuffle=False).loader(), None)
            metrics[f"{split}-{seed}"] = found.metrics
            shown = ", ".join(f"{name} {found.metrics[name]:.3f}" for name in _SHOWN if name in found.metrics)
            console.print(f"{split}, seed {seed}: {shown}", soft_wrap=True, highlight=False)
    settings = {name: str(value) for name, value in asdict(options).items()}
    (options.output / "metrics.json").write_text(json.dumps({"options": settings, "metrics": metrics}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Options, description=__doc__), Console()))
