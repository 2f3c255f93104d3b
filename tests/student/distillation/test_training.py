"""The loop: it learns, it can be killed, and it does the same with any number of workers."""

from __future__ import annotations

import json
import math
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from datalake.sample import Sample
from student.augmentation import Augmentation
from student.checkpoint import read_student
from student.config import StudentConfig
from student.distillation.controls import Targets
from student.distillation.imitation import Imitation, ImitationConfig
from student.distillation.objective import DetectionObjective, LossWeights
from student.evaluation.detection import DetectionScores
from teachers.pool import LocalPool
from tests.student.students import (
    COLORS,
    HEIGHT,
    SHADES,
    TAUGHT,
    WIDTH,
    ColorTeacher,
    build,
    cycled,
    objects_of,
    sample,
    samples,
)
from training.checkpoint import CHECKPOINT_FILE
from training.distributed import Distributed
from training.errors import TrainingError
from training.loop import LoopConfig, Trained, TrainInputs, train
from training.metrics_log import HISTORY_FILE, TENSORBOARD_FOLDER, read_history
from training.optimizer import OptimizerConfig
from training.run_dir import RunDir
from training.schedule import Schedule

pytestmark = pytest.mark.integration

LOOP = LoopConfig(steps=8, warmup=0.25, checkpoint_every=3, precision="float32")
OPTIMIZER = OptimizerConfig(learning_rate=2e-3)
WEIGHT = "backbone.fuse.0.weight"
# What a run logs that depends on when and how fast it is done.
CLOCK = {"images_per_second", "wait/data", "wait/teachers"}


@dataclass
class Killed(Exception):  # noqa: N818 - it is no error of the loop
    step: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training that a test varies."""

    folder: str
    some: Sequence[Sample] = ()
    student: StudentConfig = TAUGHT
    config: LoopConfig = LOOP
    optimizer: OptimizerConfig = OPTIMIZER
    labelled: int = 2
    unlabelled: int = 2
    distilled: bool = True
    targets: Targets = "real"
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    class_weights: Tensor = field(default_factory=lambda: torch.tensor([1.0, 2.0, 3.0]))
    seed: int = 1
    die_at: int | None = None

    def train(self, distributed: Distributed | None = None) -> tuple[Trained, DetectionObjective]:
        """Train, and return the objective as it is then."""
        distributed = distributed or Distributed()
        methods = {"imitation": Imitation(self.imitation, {"shades": self.class_weights})} if self.distilled else {}
        objective = DetectionObjective(
            build(self.student, self.seed), LossWeights(), methods, self.augmentation, self.targets
        )
        pool = LocalPool(
            {"colors": ColorTeacher(COLORS, blind=2), "shades": ColorTeacher(SHADES)}, self.student.grid(HEIGHT, WIDTH)
        )
        inputs = TrainInputs(
            batches=cycled(self.some or samples(6), self.labelled, self.unlabelled, distributed.rank, distributed.size),
            labelled=self.labelled,
            unlabelled=self.unlabelled,
            teach=pool.teach if self.distilled else None,
            seed=self.seed,
            fingerprint={"seed": self.seed},
        )

        def on_step(done: int, _: object) -> None:
            if done == self.die_at:
                raise Killed(done)

        trained = train(
            objective,
            self.config,
            self.optimizer,
            inputs,
            RunDir(self.folder),
            distributed=distributed,
            on_step=on_step,
        )
        return trained, objective


def log(folder: Path | str) -> list[dict[str, float]]:
    """Return the history without what the clock says."""
    content = RunDir(str(folder)).read(HISTORY_FILE)
    assert content is not None
    lines = [json.loads(line) for line in content.decode().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DetectionObjective]:
    """An uninterrupted run, and what came of it."""
    folder = tmp_path_factory.mktemp("whole")
    trained, objective = Run(folder=str(folder)).train()
    assert trained.steps == 8
    return folder, objective


def test_every_step_is_logged_with_its_losses_rate_and_waiting(whole: tuple[Path, DetectionObjective]) -> None:
    folder, objective = whole
    lines = read_history(RunDir(str(folder)))
    assert [line["step"] for line in lines] == list(range(8))
    losses = {"objectness", "rpn_box", "classification", "box", "depth", "imitation/colors", "imitation/shades"}
    expected = {"step", "learning_rate", "gradient_norm", *CLOCK, *(f"loss/{name}" for name in losses)}
    assert all(set(line) == expected for line in lines)
    assert all(0 <= line["wait/data"] + line["wait/teachers"] <= 1 for line in lines)
    assert any((folder / TENSORBOARD_FOLDER).iterdir())
    assert not objective.training


def test_the_logged_rates_warm_up_and_fall_along_a_cosine(whole: tuple[Path, DetectionObjective]) -> None:
    rates = [line["learning_rate"] for line in log(whole[0])]
    schedule = Schedule(peak=2e-3, steps=8, warmup_steps=2)
    assert rates == [schedule.rate(step) for step in range(8)]
    assert rates[0] < rates[1] < rates[2] == 2e-3
    assert rates[2:] == sorted(rates[2:], reverse=True)


@pytest.mark.parametrize("die_at", [2, 3, 5, 8])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    whole: tuple[Path, DetectionObjective], tmp_path: Path, die_at: int
) -> None:
    with pytest.raises(Killed):
        Run(folder=str(tmp_path), die_at=die_at).train()
    torch.rand(3)  # whatever else has drawn numbers in between
    trained, objective = Run(folder=str(tmp_path)).train()
    assert trained.steps == 8
    assert log(tmp_path) == log(whole[0])
    for name, value in whole[1].state_dict().items():
        assert torch.equal(value, objective.state_dict()[name]), name


@pytest.mark.parametrize("store", ["memory://", "s3://"])
def test_a_run_in_a_store_can_be_interrupted_as_well(
    whole: tuple[Path, DetectionObjective], store: str, request: pytest.FixtureRequest
) -> None:
    url = str(request.getfixturevalue("s3_lake")) if store == "s3://" else f"memory://runs/{uuid.uuid4().hex}"
    with pytest.raises(Killed):
        Run(folder=url, die_at=5).train()
    assert [line["step"] for line in log(url)] == [0, 1, 2]
    Run(folder=url).train()
    assert log(url) == log(whole[0])
    student, checkpoint = read_student(url)
    assert checkpoint.step == 8
    assert torch.equal(student.get_parameter(WEIGHT), whole[1].student.get_parameter(WEIGHT))


def test_a_finished_run_is_not_repeated(whole: tuple[Path, DetectionObjective]) -> None:
    before = (whole[0] / HISTORY_FILE).read_bytes()
    trained, objective = Run(folder=str(whole[0]), die_at=1).train()
    assert trained.steps == 8
    assert (whole[0] / HISTORY_FILE).read_bytes() == before
    assert torch.equal(objective.student.get_parameter(WEIGHT), whole[1].student.get_parameter(WEIGHT))


def test_a_run_of_other_settings_is_refused_in_one_line(whole: tuple[Path, DetectionObjective]) -> None:
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: a run with other settings .*: seed 1 instead of 2") as no:
        Run(folder=str(whole[0]), seed=2).train()
    assert "\n" not in str(no.value)


def test_so_is_one_of_another_student(whole: tuple[Path, DetectionObjective]) -> None:
    with pytest.raises(TrainingError, match=r"under way here: student\.head_width 32 instead of 16") as no:
        Run(folder=str(whole[0]), student=replace(TAUGHT, head_width=16)).train()
    assert "\n" not in str(no.value)


def test_a_damaged_checkpoint_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT_FILE).write_bytes(b"PK damaged")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a training checkpoint"):
        Run(folder=str(tmp_path)).train()
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == b"PK damaged"


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that sees the same two images again and again."""
    folder = str(tmp_path_factory.mktemp("overfitted"))
    still = Augmentation(mirror=0, light=0)
    config = replace(LOOP, steps=150, checkpoint_every=150, warmup=0.05)
    optimizer = OptimizerConfig(learning_rate=4e-3)
    Run(folder=folder, some=samples(2), unlabelled=0, config=config, optimizer=optimizer, augmentation=still).train()
    return folder


def test_it_learns(overfitted: str) -> None:
    lines = log(overfitted)
    for name in ("objectness", "classification", "depth", "imitation/colors", "imitation/shades"):
        before = sum(line[f"loss/{name}"] for line in lines[:5]) / 5
        early = sum(line[f"loss/{name}"] for line in lines[35:40]) / 5
        after = sum(line[f"loss/{name}"] for line in lines[-5:]) / 5
        assert early < 0.85 * before, (name, before, early)
        assert after < 0.3 * before, (name, before, after)


def test_what_it_learned_by_heart_it_finds(overfitted: str) -> None:
    student, _ = read_student(overfitted)
    scores, some = DetectionScores(), samples(2)
    answers = student(torch.stack([one.image for one in some]))
    for found, one in zip(answers, some, strict=True):
        scores.add(found, one.objects)
    assert scores.metrics()["AP50"] > 0.9


def test_a_loss_that_is_not_finite_stops_with_its_name_and_sample(tmp_path: Path) -> None:
    some = samples(6)
    some[1] = replace(some[1], objects=objects_of((10, 10, 40, math.nan, 1, 5.0)))
    with pytest.raises(TrainingError) as stopped:
        Run(folder=str(tmp_path), some=some, config=replace(LOOP, checkpoint_every=1)).train()
    # Labelled are 0 … 2, two a step: 1 is in the first.
    assert str(stopped.value).startswith("step 0: loss 'rpn_box' is ")
    assert str(stopped.value).endswith("at segment_1 1 FRONT; look at that sample, or lower the learning rate")
    assert log(tmp_path) == []
    assert not (tmp_path / CHECKPOINT_FILE).exists()


def test_the_image_without_labels_that_spoils_a_loss_is_named(tmp_path: Path) -> None:
    # Only a cyclist is of the brightest shade, and that shade's weight is no number.
    dark, bright = objects_of((10, 10, 40, 30, 1, 5.0)), objects_of((10, 10, 40, 30, 4, 5.0))
    some = [sample(number, bright if number == 4 else dark) for number in range(6)]
    weights = torch.tensor([1.0, 1.0, torch.nan])
    with pytest.raises(
        TrainingError, match=r"^step 0: loss 'imitation/shades' is nan at segment_4 4 FRONT; look at that"
    ):
        Run(folder=str(tmp_path), some=some, class_weights=weights).train()


def test_a_gradient_that_is_not_finite_leaves_the_checkpoint_of_before(tmp_path: Path) -> None:
    # The loss stays a number; its weight makes it too large for a gradient to be one.
    with pytest.raises(TrainingError, match=r"^step 0: the gradient is (inf|nan) at losses .* segment_0 0 FRONT"):
        Run(folder=str(tmp_path), imitation=ImitationConfig(regression=1e39)).train()
    assert not (tmp_path / CHECKPOINT_FILE).exists()
    assert log(tmp_path) == []


def test_a_student_that_is_not_distilled_has_the_same_parameters_and_asks_nobody(tmp_path: Path) -> None:
    _, alone = Run(folder=str(tmp_path / "alone"), distilled=False).train()
    _, taught = Run(folder=str(tmp_path / "taught")).train()
    parameters = [[(n, p.shape) for n, p in one.student.named_parameters()] for one in (alone, taught)]
    assert parameters[0] == parameters[1]
    names = {name for line in log(tmp_path / "alone") for name in line}
    assert not any(name.startswith("loss/imitate") for name in names)
    assert log(tmp_path / "alone")[0]["loss/objectness"] == log(tmp_path / "taught")[0]["loss/objectness"]


def test_shuffled_targets_change_what_is_imitated_alone(whole: tuple[Path, DetectionObjective], tmp_path: Path) -> None:
    Run(folder=str(tmp_path), targets="shuffled", config=replace(LOOP, steps=8)).train()
    real, shuffled = log(whole[0])[0], log(tmp_path)[0]
    differing = {name for name in real if real[name] != shuffled[name]}
    assert differing == {"loss/imitation/colors", "loss/imitation/shades", "gradient_norm"}


def test_every_worker_names_the_sample_of_the_worker_that_has_it(tmp_path: Path) -> None:
    some = samples(6)
    # Labelled are 0 … 2, two a step: 1 is the second worker's in the first step.
    some[1] = replace(some[1], objects=objects_of((10, 10, 40, math.nan, 1, 5.0)))
    run = Run(folder=str(tmp_path / "two"), some=some)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_stop, (run, f"{folder}/meeting", str(tmp_path)), nprocs=2)
    predicted = [(tmp_path / f"told-{rank}").read_text() for rank in range(2)]
    assert predicted[0] == predicted[1]
    assert predicted[0].endswith("at segment_1 1 FRONT; look at that sample, or lower the learning rate")


def test_a_batch_computed_in_parts_has_the_gradient_of_the_whole(tmp_path: Path) -> None:
    gradients = []
    for accumulate in (1, 2, 4):
        config = LoopConfig(steps=1, warmup=0, precision="float32", accumulate=accumulate)
        optimizer = OptimizerConfig(max_gradient_norm=1e9)
        folder = str(tmp_path / str(accumulate))
        run = Run(folder=folder, some=samples(8), config=config, optimizer=optimizer, labelled=4, unlabelled=4)
        _, objective = run.train()
        gradients.append({name: value.grad for name, value in objective.named_parameters() if value.grad is not None})
    whole = gradients.pop(0)
    assert len(whole) > 100
    for parts in gradients:
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
    first, *others = (log(tmp_path / str(accumulate))[0] for accumulate in (1, 2, 4))
    assert all(other == pytest.approx(first, rel=1e-4) for other in others)


def test_a_batch_that_cannot_be_cut_into_parts_is_refused(tmp_path: Path) -> None:
    config = replace(LOOP, accumulate=2)
    with pytest.raises(TrainingError, match="3 images without labels of a worker cannot be cut into 2 parts"):
        Run(folder=str(tmp_path), config=config, unlabelled=3).train()


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="3 images without labels cannot be cut among 2 workers"):
        Run(folder=str(tmp_path), unlabelled=3).train(Distributed(size=2))


def _ray_worker(rank: int, run: Run, meeting: str) -> None:
    """One of two workers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        run.train(Distributed(rank, 2))
    finally:
        dist.destroy_process_group()


def _stop(rank: int, run: Run, meeting: str, folder: str) -> None:
    """One of two workers, whose training stops; writes down why."""
    with pytest.raises(TrainingError) as stopped:
        _ray_worker(rank, run, meeting)
    (Path(folder) / f"told-{rank}").write_text(str(stopped.value))
    # The error is still kept. A thread of the group's that lived on could abort the process at its end.
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert "pt_gloo_runloop" not in names


def test_two_workers_do_what_one_does(tmp_path: Path) -> None:
    # At a high rate rounding soon decides which proposals survive, and other ones give other losses. Muon enlarges
    # rounding as well: directions in which a gradient is next to nothing become as long as all others.
    config = replace(LOOP, steps=20, checkpoint_every=20)
    optimizer = OptimizerConfig(learning_rate=1e-4, muon_lr_factor=0.0)
    Run(folder=str(tmp_path / "one"), config=config, optimizer=optimizer).train()
    run = Run(folder=str(tmp_path / "two"), config=config, optimizer=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_ray_worker, (run, f"{folder}/meeting"), nprocs=2)
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [line["step"] for line in two] == list(range(20))
    for first, second in zip(one, two, strict=True):
        assert second.pop("gradient_norm") == pytest.approx(first.pop("gradient_norm"), rel=1e-2)
        assert second == pytest.approx(first, rel=1e-4, abs=1e-6)
