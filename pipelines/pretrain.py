"""Pre-train the student's trunk on drives without labels: `python pipelines/pretrain.py --lake URL --out URL`.

    OUT/checkpoint.pt     trunk, heads, target, and the training, replaced as a whole every so many steps
    OUT/history.jsonl     a line for each step: loss, rates, throughput, and whether projections collapse
    OUT/tensorboard/      the same for TensorBoard

Run it again after any interruption, with the same settings, and it goes on where it was. `train.py --init OUT` gives
a student the trunk.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from rich.console import Console
from torch.utils.data import DataLoader

from datalake.cli import run_command
from datalake.commit import LakeError
from datalake.lake import open_lake
from datalake.loader import LoaderConfig
from datalake.progress_bar import ProgressBar
from datalake.sample import Sample
from pipelines.device import decoding_threads, device_of
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from student.config import StudentConfig, StudentError
from student.layers import memory_format
from student.pretraining.byol import ByolConfig, ByolObjective
from student.pretraining.byol_dense import ByolDenseConfig, ByolDenseObjective
from student.pretraining.byol_lidar import ByolLidarConfig, ByolLidarObjective
from student.pretraining.clips import ClipStream, Pairs
from student.pretraining.collapse import collapse_of, summary
from student.pretraining.dino import DinoConfig, DinoObjective
from student.pretraining.folder_clips import FolderClips
from student.pretraining.odin import OdinConfig, OdinObjective
from student.pretraining.views import ViewConfig
from student.trunk import trunk_settings
from training.distributed import Distributed
from training.fingerprint import Plain, flatten
from training.loop import LoopConfig, Trained, TrainInputs, train
from training.objective import Batch, Objective
from training.optimizer import OptimizerConfig
from training.run_dir import RunDir
from training.run_lock import run_lock

Method = Literal["byol", "byol-dense", "byol-lidar", "dino", "odin"]
# Chunks that are mixed at a time, at least.
_STREAMS = 64
# What does not decide about the result; of the student the trunk does, which the objective's fingerprint has.
_IRRELEVANT = {"out", "data_workers", "device", "loop.checkpoint_every", "loop.keep", "loop.diagnose_every"}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pre-train a student's trunk on pairs of images, without labels."""

    # The checkpoint and the logs go here: a local folder or any fsspec URL.
    out: str
    # The lake: a local path, s3:// or gs://.
    lake: str | None = None
    # Instead of a lake, a folder with a sub-folder of images for each clip, such as `images/train` of an export. Masks,
    # for --odin.masks panoptic, lie beside the images as <name>_mask.png.
    clips: str | None = None
    # How the trunk learns.
    method: Method = "byol"
    # What the two views show: `next` an image and the camera's next one, `same` one image; `shuffled` an image and one
    # of another segment, a control.
    pairs: Pairs = "next"
    # The student whose trunk is trained; of it only the trunk and the images' normalization matter.
    student: StudentConfig = field(default_factory=StudentConfig)
    # Seed of weights, order and views.
    seed: int = 0
    # The split to train on; never one that students are evaluated on.
    split: str = "train"
    # Train on these images of the split alone, as in SQL: "time_of_day = 'Night'".
    where: str | None = None
    # The lake's snapshot; the newest by default. A run that continues needs the one that it began with.
    snapshot: int | None = None
    # Cameras whose images are used.
    cameras: tuple[str, ...] = ("FRONT",)
    # Width and height that images are scaled to before views are cut out of them.
    image_size: tuple[int, int] = (192, 128)
    # Pairs per step.
    batch: int = 32
    # Processes that read samples ahead; 0: threads alone.
    data_workers: int = 0
    # Where to train: cpu, cuda, cuda:1 …; by default on the GPU if there is one.
    device: str = "auto"
    # What the views differ in.
    views: ViewConfig = field(default_factory=ViewConfig)
    # BYOL's heads and target.
    byol: ByolConfig = field(default_factory=ByolConfig)
    # BYOL of cells: heads, target and weights.
    byol_dense: ByolDenseConfig = field(default_factory=ByolDenseConfig)
    # BYOL of places that lidar finds again: heads, target and weights.
    byol_lidar: ByolLidarConfig = field(default_factory=ByolLidarConfig)
    # DINO's network, head, temperatures and small crops.
    dino: DinoConfig = field(default_factory=DinoConfig)
    # ODIN's regions, heads and networks.
    odin: OdinConfig = field(default_factory=OdinConfig)
    # The optimizer, AdamW for all weights, and its learning rate.
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, weight_decay=1e-4, max_gradient_norm=3.0)
    )
    # How long, and in which number format. Diagnostics tell whether the projections collapse.
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(warmup=0.1, diagnose_every=50))

    def source(self) -> LakePairs | FolderPairs:
        """Return where the pairs are read from. Raises LakeError where there is none, or where there are two."""
        if (self.lake is None) == (self.clips is None):
            raise LakeError("expected either --lake or --clips")
        return LakePairs(self) if self.clips is None else FolderPairs(self, self.clips)

    def identity(self, source: LakePairs | FolderPairs) -> dict[str, Plain]:
        """Return what decides about the result: settings and what is trained on."""
        settings = {name: value for name, value in flatten(self).items() if name not in _IRRELEVANT}
        # Other methods' settings decide nothing.
        others = {f"{_field(name)}." for name in METHODS if name != self.method} | {"student."}
        kept = {name: value for name, value in settings.items() if not name.startswith(tuple(others))}
        return {**kept, **source.identity()}


class LakePairs:
    """Pairs of the images of a lake."""

    def __init__(self, config: PretrainConfig) -> None:
        assert config.lake is not None
        self._config = config
        self._lake = open_lake(absolute(config.lake), config.snapshot).where(config.where, config.split)

    def batches(self, step: int, threads: int) -> DataLoader[list[Sample]]:
        """Return the batches from a step on, for ever."""
        return self.stream(threads=threads, step=step).loader(self._config.data_workers)

    def stream(self, *, threads: int = 1, step: int = 0) -> ClipStream:
        """Return the pairs from a step on, for ever. Raises LakeError where there are too few."""
        config = self._config
        method = METHODS[config.method]
        settings = LoaderConfig(
            split=config.split,
            cameras=config.cameras,
            image_size=config.image_size,
            points=method.points(config),
            poses=method.points(config),
            panoptic=method.panoptic(config),
            global_batch=config.batch,
            seed=config.seed,
            threads=threads,
            streams=-(-_STREAMS // config.batch) * config.batch,
        )
        return ClipStream(self._lake, settings, config.pairs, start=step * config.batch)

    def check(self) -> None:
        """Raise LakeError where there are too few pairs."""
        self.stream()

    def identity(self) -> dict[str, Plain]:
        """Return the lake and its snapshot."""
        return {"lake": self._lake.store.url, "snapshot": self._lake.snapshot}


class FolderPairs:
    """Pairs of the images of a folder of clips."""

    def __init__(self, config: PretrainConfig, folder: str) -> None:
        self._config, self._folder = config, absolute(folder)
        if METHODS[config.method].points(config):
            raise LakeError(f"--clips {folder}: no points, which --method {config.method} needs; give a --lake")
        masks = METHODS[config.method].panoptic(config)
        self._clips = FolderClips(
            self._folder, config.pairs, config.image_size, config.batch, seed=config.seed, masks=masks
        )

    def batches(self, step: int, threads: int) -> DataLoader[list[Sample]]:
        """Return the batches from a step on, for ever."""
        return self._clips.loader(step, self._config.data_workers, threads)

    def check(self) -> None:
        """Do nothing: the folder was read."""

    def identity(self) -> dict[str, Plain]:
        """Return the folder and what is in it; what only lakes have decides nothing."""
        of_lakes = dict.fromkeys(("lake", "snapshot", "split", "where", "cameras"))
        return {**of_lakes, "clips": self._folder, "clips_sha256": self._clips.sha256}


class MethodEntry(NamedTuple):
    """How a method's objective is built, and what its samples must have beside the image."""

    build: Callable[[PretrainConfig], Objective]
    points: Callable[[PretrainConfig], bool] = lambda _config: False
    panoptic: Callable[[PretrainConfig], bool] = lambda _config: False


# The methods by the names that --method takes; their settings are fields of PretrainConfig of that name.
METHODS: dict[str, MethodEntry] = {
    "byol": MethodEntry(lambda config: ByolObjective(config.student, config.byol, config.views)),
    "byol-dense": MethodEntry(lambda config: ByolDenseObjective(config.student, config.byol_dense, config.views)),
    "byol-lidar": MethodEntry(
        lambda config: ByolLidarObjective(config.student, config.byol_lidar, config.views), points=lambda _config: True
    ),
    "dino": MethodEntry(lambda config: DinoObjective(config.student, config.dino, config.views)),
    "odin": MethodEntry(
        lambda config: OdinObjective(config.student, config.odin, config.views),
        points=lambda config: config.odin.masks == "lidar",
        panoptic=lambda config: config.odin.masks == "panoptic",
    ),
}


def _field(method: str) -> str:
    return method.replace("-", "_")


def pretrain(
    config: PretrainConfig,
    device: torch.device,
    console: Console,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda _step, _metrics: None,
) -> tuple[Trained, Mapping[str, float]]:
    """Pre-train from the checkpoint if there is one; return what was done, and what was last measured.

    on_step: called after each step with the steps done and what was logged

    A collapse is printed in a line, each time that it is measured.
    """
    source = config.source()
    threads = decoding_threads(device)

    def batches(cursor: int) -> Iterator[Batch]:
        loader = source.batches(cursor, threads)
        # A loader draws a number when it starts; not from the generator that the weights come from.
        loader.generator = torch.Generator()
        for step, samples in enumerate(loader, cursor):
            yield Batch(samples, config.batch, step + 1)

    inputs = TrainInputs(
        batches=batches,
        labelled=config.batch,
        unlabelled=0 if config.pairs == "same" else config.batch,
        seed=config.seed,
        fingerprint=config.identity(source),
    )
    measured: dict[str, float] = {}

    def report(step: int, metrics: Mapping[str, float]) -> None:
        if any(name.startswith("collapse/") for name in metrics):
            measured.update(metrics)
            if collapse := collapse_of(metrics, getattr(config, _field(config.method)).recent):
                console.print(f"step {step:,}: {collapse}", soft_wrap=True, highlight=False)
        on_step(step, metrics)

    torch.manual_seed(config.seed)
    objective = METHODS[config.method].build(config).to(device)
    layout = memory_format(config.student.norm, device)
    objective = objective.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    trained = train(
        objective,
        config.loop,
        config.optimizer,
        inputs,
        RunDir(absolute(config.out)),
        distributed=Distributed(device=device),
        on_step=report,
    )
    return trained, measured


def run(config: PretrainConfig, console: Console) -> int:
    """Pre-train, print a closing line, and return the exit status 0."""
    check_options(config)
    _check(config)
    with run_lock(absolute(config.out)), ProgressBar(console) as bar:
        steps = config.loop.steps
        trained, measured = pretrain(
            config, device_of(config.device), console, lambda step, _: bar.update("pretrain", step, steps, "steps")
        )
    metrics = summary(measured)
    console.print(
        f"pre-trained {steps:,} steps in {trained.seconds:,.0f} s: {metrics}; {absolute(config.out)}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def _check(config: PretrainConfig) -> None:
    """Raise StudentError or LakeError now for what would be found out later, or by nobody."""
    if config.student.trunk_weights is not None:
        raise StudentError("--student.trunk-weights: pre-training starts from random weights; leave them out")
    if config.method == "byol-dense" and config.pairs != "same":
        raise StudentError(f"--pairs {config.pairs}: byol-dense compares places of one image; give --pairs same")
    sizes = {"--views.size": config.views.size}
    if config.method == "dino":
        sizes["--dino.crop-size"] = config.dino.crop_size
    if config.method == "byol-lidar":
        sizes["--byol-lidar.crop"] = (config.byol_lidar.crop,) * 2
    if config.method == "odin":
        sizes["--image-size"] = config.image_size
    if config.method in ("byol-dense", "odin"):
        cell = getattr(config, _field(config.method)).cell * config.student.stride
        for option, size in sizes.items():
            if any(side % cell for side in size):
                raise StudentError(f"{option} {size[0]} {size[1]}: no whole cells of {cell} pixels")
    if config.method == "dino" and config.dino.network == "vit":
        for option, size in sizes.items():
            if any(side % config.dino.vit.patch for side in size):
                raise StudentError(f"{option} {size[0]} {size[1]}: no whole patches of {config.dino.vit.patch}")
    else:
        for width, height in sizes.values():
            config.student.grid(height, width)
    for name in ("area", "aspect"):
        least, most = getattr(config.views, name)
        if least > most:
            raise StudentError(f"--views.{name} {least} {most}: expected the smaller one first")
    trunk_settings(config.student)
    if config.method == "byol-lidar" and config.pairs == "shuffled":
        raise StudentError("--pairs shuffled: images of different segments show no place that byol-lidar could find")
    config.source().check()


def main() -> None:
    """Run from the command line."""
    run_command("pretrain", PretrainConfig, run, __doc__)


if __name__ == "__main__":
    main()
