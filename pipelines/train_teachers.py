"""Train teachers from a lake's own labels: `python pipelines/train_teachers.py --lake URL --out FOLDER`.

    FOLDER/spvcnn      weights.safetensors, card.json; checkpoint.pt and history.jsonl of the training
    FOLDER/mask_rcnn   likewise
    FOLDER/detector    only with `--teacher detector`: student.safetensors in place of weights.safetensors

Run it again after any interruption, with the same settings, and it continues. It runs by itself, or as
`ray job submit --working-dir . -- python pipelines/train_teachers.py …` on a cluster. With `--workers 2` each teacher
is trained by two workers of Ray Train; with 0, the default, it needs no Ray.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from datalake.cli import run_command
from datalake.lake import Lake, open_lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.progress_bar import ProgressBar
from datalake.sample import Sample
from pipelines.cluster import cluster
from pipelines.data import Frames, check_disjoint_splits
from pipelines.device import device_of
from pipelines.image_size import ImageSize, find_image_size, fixed
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from pipelines.train_config import TrainConfig
from pipelines.train_detector import DetectorTrainConfig, train_detector
from teachers.card import TeacherCard, TrainingData
from teachers.confusion import Confusion
from teachers.mask_rcnn.train import MaskRcnnTrainConfig, train_mask_rcnn
from teachers.spvnas.train import SpvcnnTrainConfig, train_spvcnn
from teachers.training import RunContext, TeacherData
from training.distributed import Distributed
from training.run_lock import run_lock

TeacherName = Literal["spvcnn", "mask_rcnn", "detector"]


@dataclass(frozen=True, kw_only=True)
class TrainTeachersConfig:
    """Train SPVCNN on point labels, Mask R-CNN on panoptic labels, a detector on boxes; evaluate on other segments."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # The teachers go into folders below this one: a local folder or any fsspec URL.
    out: str
    # Train this one only; by default SPVCNN and Mask R-CNN.
    teacher: TeacherName | None = None
    # The split to train on, of other segments than the student's, whose labels would leak.
    train_split: str = "teach"
    # The split to evaluate on.
    eval_split: str = "val"
    # The lake's snapshot; the newest by default. A run that continues needs the one that it began with.
    snapshot: int | None = None
    # Cameras whose images Mask R-CNN sees.
    cameras: tuple[str, ...] = ("FRONT",)
    # Width and height that images are scaled to; `auto`: as large as the lake's boxes need, see train.py.
    image_size: ImageSize = "auto"
    # At most so many samples are evaluated.
    eval_samples: int = 500
    # Seed of weights, order and augmentation.
    seed: int = 0
    # Processes that read samples ahead; 0: none but the training's own.
    data_workers: int = 0
    # Where to train: cpu, cuda, cuda:1 …; by default on the GPU if there is one.
    device: str = "auto"
    # Workers of Ray Train; 0: this process alone.
    workers: int = 0
    # How often lost workers are started again.
    max_failures: int = 3
    # How SPVCNN is trained.
    spvcnn: SpvcnnTrainConfig = field(default_factory=SpvcnnTrainConfig)
    # How Mask R-CNN is trained.
    mask_rcnn: MaskRcnnTrainConfig = field(default_factory=MaskRcnnTrainConfig)
    # How a detector is trained.
    detector: DetectorTrainConfig = field(default_factory=DetectorTrainConfig)


def run(config: TrainTeachersConfig, console: Console) -> int:
    """Train, print each teacher's metrics, and return the exit status 0."""
    check_options(config)
    lake = open_lake(absolute(config.lake), config.snapshot)
    out = absolute(config.out)
    if config.teacher == "detector":
        return _run_detector(config, lake, f"{out}/detector", console)
    # A worker of Ray may run in another folder.
    located = replace(config, lake=absolute(config.lake), snapshot=lake.snapshot)
    names: tuple[TeacherName, ...] = (config.teacher,) if config.teacher else ("spvcnn", "mask_rcnn")
    for name in names:
        folder = f"{out}/{name}"
        size = find_image_size(config.image_size, lake, config.cameras, console, run=folder)
        sized = with_whole_images(replace(located, image_size=size))
        with run_lock(folder):
            console.print(summary(*_trained(sized, name, folder, console)))
        console.print(folder, soft_wrap=True, highlight=False)
    return 0


def _trained(
    config: TrainTeachersConfig, name: TeacherName, folder: str, console: Console
) -> tuple[TeacherCard, Confusion]:
    if config.workers:
        # Both splits are checked here: workers that fail are started again.
        teacher_data(open_lake(config.lake, config.snapshot), config, points=name == "spvcnn", progress=lambda *_: None)
        with cluster():
            # Ray is imported where it is used: without `--workers` it is not needed.
            from pipelines.train_teachers_on_ray import train_teacher_on_ray

            return train_teacher_on_ray(config, name, folder, console)
    with ProgressBar(console) as bar:
        found = train_worker(config, name, folder, Distributed(device=device_of(config.device)), progress=bar.update)
    assert found is not None
    return found


def train_worker(
    config: TrainTeachersConfig,
    name: TeacherName,
    folder: str,
    distributed: Distributed,
    *,
    progress: Callable[[str, int, int, str], None] = lambda _stage, _done, _total, _unit: None,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda _step, _metrics: None,
) -> tuple[TeacherCard, Confusion] | None:
    """Train a teacher as one of the workers, from its checkpoint if there is one; return what the first has measured.

    folder: the teacher's
    """
    lake = open_lake(config.lake, config.snapshot)
    data = teacher_data(lake, config, points=name == "spvcnn", progress=progress)
    context = RunContext(
        folder=folder,
        seed=config.seed,
        fingerprint=_fingerprint(config, lake),
        progress=progress,
        distributed=distributed,
        on_step=on_step,
    )
    if name == "spvcnn":
        return train_spvcnn(config.spvcnn, data, context)
    return train_mask_rcnn(config.mask_rcnn, data, context)


def _run_detector(config: TrainTeachersConfig, lake: Lake, out: str, console: Console) -> int:
    check_disjoint_splits(lake, config.train_split, config.eval_split)
    size = find_image_size(config.image_size, lake, config.cameras, console, run=out)
    data = TrainConfig(
        lake=config.lake,
        out=out,
        split=config.train_split,
        snapshot=lake.snapshot,
        cameras=config.cameras,
        image_size=size,
        seed=config.seed,
        data_workers=config.data_workers,
        device=config.device,
        workers=config.workers,
        max_failures=config.max_failures,
    )
    evaluation = Frames(lake=lake, split=config.eval_split, cameras=config.cameras, image_size=size, points=False)
    with run_lock(out), ProgressBar(console) as bar:
        card = train_detector(config.detector, data, evaluation, config.eval_samples, console, bar.update)
    table = Table("", card.name, title=f"{card.name}: {_length(card)}", title_justify="left")
    for name, figure in card.metrics.items():
        if name.startswith(("AP", "recall", "depth/AbsRel")):
            table.add_row(name.replace("/", " "), f"{figure:.3f}")
    console.print(table)
    console.print(out, soft_wrap=True, highlight=False)
    return 0


def teacher_data(
    lake: Lake, config: TrainTeachersConfig, *, points: bool, progress: Callable[[str, int, int, str], None]
) -> TeacherData:
    """Return the samples to train and to evaluate on. Raises LakeError where the splits do not fit.

    points: read what the lidar teacher needs; otherwise what the mask teacher needs
    progress: called with the stage, samples evaluated and samples in all, and their name
    """
    # Each camera of a frame has the same points: for the lidar teacher one is enough.
    cameras = config.cameras[:1] if points else config.cameras

    def stream(split: str, *, start: int, epochs: int | None) -> SampleStream:
        # Batches are made of labelled samples, and a stream cannot know which are: it gives them one by one.
        settings = LoaderConfig(
            split=split,
            cameras=cameras,
            image_size=fixed(config.image_size),
            points=points,
            panoptic=not points,
            global_batch=1,
            seed=config.seed,
        )
        return SampleStream(lake, settings, start=start, epochs=epochs)

    def samples(split: str, *, start: int = 0, epochs: int | None = None) -> Iterator[Sample]:
        loader = stream(split, start=start, epochs=epochs).loader(config.data_workers)
        # A loader draws a number when it starts. From torch's own generator that would shift a resumed run's numbers.
        loader.generator = torch.Generator()
        for batch in loader:
            yield from batch

    def evaluation() -> Iterator[Sample]:
        total = min(evaluated, config.eval_samples)
        for number, sample in enumerate(itertools.islice(samples(config.eval_split, epochs=1), total), 1):
            yield sample
            progress("evaluate", number, total, "samples")

    check_disjoint_splits(lake, config.train_split, config.eval_split)
    # Both are checked now: a missing camera must not be found out after the training.
    evaluated = stream(config.eval_split, start=0, epochs=1).epoch_samples
    return TeacherData(
        endless=lambda start: samples(config.train_split, start=start),
        epoch_samples=stream(config.train_split, start=0, epochs=1).epoch_samples,
        evaluation=evaluation,
        data=TrainingData(
            lake=lake.store.url,
            snapshot=lake.snapshot,
            segments={config.train_split: tuple(sorted({c.segment for c in lake.in_split(config.train_split)}))},
            image_size=fixed(config.image_size),
        ),
    )


def with_whole_images(config: TrainTeachersConfig) -> TrainTeachersConfig:
    """Return the same with a Mask R-CNN that does not shrink these images."""
    mask, (width, height) = config.mask_rcnn, fixed(config.image_size)
    network = replace(
        mask.network,
        min_size=max(mask.network.min_size, min(width, height)),
        max_size=max(mask.network.max_size, width, height),
    )
    return replace(config, mask_rcnn=replace(mask, network=network))


def summary(card: TeacherCard, confusion: Confusion) -> Table:
    """Return a teacher's metrics, and beside them those of always predicting the commonest class."""
    table = Table("", card.name, "trivial", title=f"{card.name}: {_length(card)}", title_justify="left")
    for name in ("mIoU", "accuracy"):
        table.add_row(name, f"{card.metrics[name]:.3f}", f"{card.metrics[f'trivial/{name}']:.3f}")
    trivial = confusion.trivial.iou().tolist()
    for name, other in zip(card.class_names, trivial, strict=True):
        if (figure := card.metrics.get(f"IoU/{name}")) is not None:
            table.add_row(f"IoU {name}", f"{figure:.3f}", f"{other:.3f}")
    for name, figure in card.metrics.items():
        if name.startswith("AP"):
            table.add_row(name.replace("/", " "), f"{figure:.3f}", f"{0:.3f}")
    return table


def _length(card: TeacherCard) -> str:
    return f"{card.metrics['training/steps']:,.0f} steps in {card.metrics['training/seconds']:,.0f} s"


def _fingerprint(config: TrainTeachersConfig, lake: Lake) -> dict[str, str | int | float | bool | None]:
    return {
        "lake": lake.store.url,
        "snapshot": lake.snapshot,
        "train_split": config.train_split,
        "cameras": ", ".join(config.cameras),
        "image_size": str(config.image_size),
        "seed": config.seed,
    }


def main() -> None:
    """Run from the command line."""
    run_command("train_teachers", TrainTeachersConfig, run, __doc__)


if __name__ == "__main__":
    main()
