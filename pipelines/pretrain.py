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
from typing import Literal

import torch
from rich.console import Console

from datalake.cli import run_command
from datalake.lake import Lake, open_lake
from datalake.loader import LoaderConfig
from datalake.progress_bar import ProgressBar
from pipelines.device import decoding_threads, device_of
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from student.config import StudentConfig, StudentError
from student.layers import memory_format
from student.pretraining.byol import ByolConfig, ByolObjective
from student.pretraining.clips import ClipStream, Pairs
from student.pretraining.collapse import RANK, STD, VECTORS, collapse_of
from student.pretraining.views import ViewConfig
from student.trunk import trunk_settings
from training.distributed import Distributed
from training.fingerprint import Plain, flatten
from training.loop import LoopConfig, Trained, TrainInputs, train
from training.objective import Batch, Objective
from training.optimizer import OptimizerConfig
from training.run_dir import RunDir
from training.run_lock import run_lock

Method = Literal["byol"]
# Chunks that are mixed at a time, at least.
_STREAMS = 64
# What does not decide about the result; of the student the trunk does, which the objective's fingerprint has.
_IRRELEVANT = {"out", "data_workers", "device", "loop.checkpoint_every", "loop.keep", "loop.diagnose_every"}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pre-train a student's trunk on pairs of images, without labels."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # The checkpoint and the logs go here: a local folder or any fsspec URL.
    out: str
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
    # The optimizer, AdamW for all weights, and its learning rate.
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, weight_decay=1e-4, max_gradient_norm=3.0)
    )
    # How long, and in which number format. Diagnostics tell whether the projections collapse.
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(warmup=0.1, diagnose_every=50))

    def open_lake(self) -> Lake:
        """Return the lake with the images to train on."""
        return open_lake(absolute(self.lake), self.snapshot).where(self.where, self.split)

    def stream(self, lake: Lake, *, threads: int = 1, step: int = 0) -> ClipStream:
        """Return the pairs from a step on, for ever."""
        settings = LoaderConfig(
            split=self.split,
            cameras=self.cameras,
            image_size=self.image_size,
            points=False,
            global_batch=self.batch,
            seed=self.seed,
            threads=threads,
            streams=-(-_STREAMS // self.batch) * self.batch,
        )
        return ClipStream(lake, settings, self.pairs, start=step * self.batch)

    def identity(self, lake: Lake) -> dict[str, Plain]:
        """Return what decides about the result: settings and the lake's snapshot."""
        settings = {name: value for name, value in flatten(self).items() if name not in _IRRELEVANT}
        # Other methods' settings decide nothing.
        others = {f"{name}." for name in METHODS if name != self.method} | {"student."}
        kept = {name: value for name, value in settings.items() if not name.startswith(tuple(others))}
        return {**kept, "lake": lake.store.url, "snapshot": lake.snapshot}


# The methods by the names that --method takes; their settings are fields of PretrainConfig of that name.
METHODS: dict[str, Callable[[PretrainConfig], Objective]] = {
    "byol": lambda config: ByolObjective(config.student, config.byol, config.views),
}


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
    lake = config.open_lake()
    threads = decoding_threads(device)

    def batches(cursor: int) -> Iterator[Batch]:
        loader = config.stream(lake, threads=threads, step=cursor).loader(config.data_workers)
        # A loader draws a number when it starts; not from the generator that the weights come from.
        loader.generator = torch.Generator()
        for step, samples in enumerate(loader, cursor):
            yield Batch(samples, config.batch, step + 1)

    inputs = TrainInputs(
        batches=batches,
        labelled=config.batch,
        unlabelled=0 if config.pairs == "same" else config.batch,
        seed=config.seed,
        fingerprint=config.identity(lake),
    )
    measured: dict[str, float] = {}

    def report(step: int, metrics: Mapping[str, float]) -> None:
        if VECTORS in metrics:
            measured.update(metrics)
            if collapse := collapse_of(metrics, config.byol.recent):
                console.print(f"step {step:,}: {collapse}", soft_wrap=True, highlight=False)
        on_step(step, metrics)

    torch.manual_seed(config.seed)
    objective = METHODS[config.method](config).to(device)
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
    figures = (
        f"std {measured[STD]:.2f}, effective rank {measured[RANK]:.0f} of {config.byol.dimensions}"
        f" in {measured[VECTORS]:,.0f} projections"
        if measured
        else "whether projections collapse was not measured"
    )
    console.print(
        f"pre-trained {steps:,} steps in {trained.seconds:,.0f} s: {figures}; {absolute(config.out)}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def _check(config: PretrainConfig) -> None:
    """Raise StudentError or LakeError now for what would be found out later, or by nobody."""
    if config.student.trunk_weights is not None:
        raise StudentError("--student.trunk-weights: pre-training starts from random weights; leave them out")
    width, height = config.views.size
    config.student.grid(height, width)
    for name in ("area", "aspect"):
        least, most = getattr(config.views, name)
        if least > most:
            raise StudentError(f"--views.{name} {least} {most}: expected the smaller one first")
    trunk_settings(config.student)
    config.stream(config.open_lake())


def main() -> None:
    """Run from the command line."""
    run_command("pretrain", PretrainConfig, run, __doc__)


if __name__ == "__main__":
    main()
