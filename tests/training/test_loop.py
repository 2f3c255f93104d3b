"""The training loop, on a objective of one layer."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datalake.sample import Sample
from teachers.batches import labelled_batches
from tests.teachers.samples import sample
from training.checkpoint import CHECKPOINT_FILE, load_checkpoint
from training.errors import TrainingError
from training.fingerprint import Plain
from training.generators import Chance
from training.loop import LoopConfig, Trained, TrainInputs, train
from training.metrics_log import read_history
from training.objective import Batch, Loss, Objective, ParameterGroup
from training.optimizer import OptimizerConfig
from training.run_dir import RunDir
from training.schedule import Schedule

pytestmark = pytest.mark.integration

CONFIG = LoopConfig(steps=12, warmup=0.25, checkpoint_every=4, precision="float32")
OPTIMIZER = OptimizerConfig(learning_rate=0.05)
EPOCH = 20
# What a run logs that depends on when and how fast it is done.
CLOCK = {"images_per_second", "wait/data", "wait/teachers"}


class Doubling(Objective):
    """Learns to double the sample's number, of which every fifth has no label; uses a norm, dropout and random noise.

    poison: the sample whose loss is not finite, and how: its loss, or its gradient alone
    """

    def __init__(self, poison: int | None = None, only_gradient: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.poison, self.only_gradient = poison, only_gradient
        self.followed: list[float] = []
        self.places: list[tuple[int, ...]] = []

    def collate(self, batch: Batch, targets: Mapping[str, Any], chance: Chance) -> tuple[Tensor, Tensor, bool]:
        assert targets == {}
        self.places.append(chance.places)
        number = torch.tensor([[float(one.key.timestamp_us)] for one in batch.samples]) / EPOCH
        noise = torch.stack([torch.rand(1, generator=generator) for generator in chance.generators("noise")])
        poisoned = any(one.key.timestamp_us == self.poison for one in batch.samples)
        return number, number + 0.1 * noise, poisoned

    def forward(self, batch: tuple[Tensor, Tensor, bool], progress: float) -> dict[str, Loss]:
        assert 0 <= progress < 1
        number, given, poisoned = batch
        # A norm cannot be trained on one value alone.
        answer = self.network(given.repeat(2, 1))[: len(given)]
        size = answer.abs().mean()
        if poisoned:
            # The root of zero is zero, its slope is infinite.
            size = size + ((size - size).sqrt() if self.only_gradient else torch.tensor(torch.nan))
        return {"error": Loss((answer - 2 * number).square().mean()), "size": Loss(size, 0.01)}

    def parameter_groups(self) -> list[ParameterGroup]:
        hidden = [self.network.get_parameter("0.weight"), self.network.get_parameter("3.weight")]
        return [ParameterGroup("network", list(self.network.parameters()), hidden)]

    def product(self) -> nn.Module:
        return self.network

    def config(self) -> str:
        return "{}"

    def fingerprint(self) -> dict[str, Plain]:
        return {"width": 8}

    def after_step(self, progress: float) -> None:
        self.followed.append(progress)


def endless(start: int) -> Iterator[Sample]:
    position = start
    while True:
        yield sample(position * 7 % EPOCH)
        position += 1


def is_labelled(one: Sample) -> bool:
    return one.key.timestamp_us % 5 != 0


@dataclass
class Killed(Exception):  # noqa: N818 - it is no error of the loop
    step: int


def run(
    folder: Path | str,
    objective: Doubling,
    *,
    config: LoopConfig = CONFIG,
    optimizer: OptimizerConfig = OPTIMIZER,
    die_at: int | None = None,
) -> Trained:
    def on_step(done: int, _: Mapping[str, float]) -> None:
        if done == die_at:
            raise Killed(done)

    inputs = TrainInputs(
        batches=lambda cursor: labelled_batches(endless(cursor), is_labelled, 3, start=cursor, patience=EPOCH),
        labelled=3,
        seed=1,
        fingerprint={"seed": 1, "learning_rate": optimizer.learning_rate},
    )
    return train(objective, config, optimizer, inputs, RunDir(str(folder)), on_step=on_step)


def log(folder: Path) -> list[dict[str, float]]:
    """Return the history without what the clock says."""
    lines = read_history(RunDir(str(folder)))
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def test_losses_fall_and_everything_is_logged(tmp_path: Path) -> None:
    objective = Doubling()
    config = LoopConfig(steps=200, warmup=0.1, precision="float32")
    trained = run(tmp_path, objective, config=config)
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == list(range(200))
    assert {name for line in lines for name in line} == {
        "step",
        "learning_rate",
        "gradient_norm",
        "loss/error",
        "loss/size",
    }
    assert sum(line["loss/error"] for line in lines[-20:]) < 0.3 * sum(line["loss/error"] for line in lines[:20])
    # Of every five samples four are labelled.
    assert trained.steps == 200
    assert trained.cursor == pytest.approx(200 * 3 * 5 / 4, abs=1)
    assert not objective.training


def test_the_rate_in_the_log_is_the_schedule(tmp_path: Path) -> None:
    run(tmp_path, Doubling())
    schedule = Schedule(peak=0.05, steps=12, warmup_steps=3)
    logged = [line["learning_rate"] for line in log(tmp_path)]
    assert logged == [schedule.rate(step) for step in range(12)]


@pytest.mark.parametrize("die_at", [2, 4, 7, 11, 12])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path, die_at: int) -> None:
    whole, parts = Doubling(), Doubling()
    run(tmp_path / "whole", whole)
    with pytest.raises(Killed):
        run(tmp_path / "parts", parts, die_at=die_at)
    torch.rand(3)  # whatever else has drawn numbers in between
    again = Doubling()
    trained = run(tmp_path / "parts", again)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    assert trained.steps == 12


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = run(tmp_path, Doubling())
    assert run(tmp_path, Doubling(), die_at=1) == first


def test_other_settings_do_not_continue_it(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, Doubling(), die_at=5)
    with pytest.raises(TrainingError, match=r"learning_rate 0\.05 instead of 0\.1"):
        run(tmp_path, Doubling(), optimizer=OptimizerConfig(learning_rate=0.1))


def test_how_often_checkpoints_are_made_is_no_other_setting(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, Doubling(), die_at=5)
    oftener = LoopConfig(**{**vars(CONFIG), "checkpoint_every": 1})
    assert run(tmp_path, Doubling(), config=oftener).steps == 12


def test_kept_checkpoints_are_those_of_their_steps_whatever_interrupts_the_run(tmp_path: Path) -> None:
    keeping = LoopConfig(**{**vars(CONFIG), "keep": 3})
    run(tmp_path / "whole", Doubling(), config=keeping)
    with pytest.raises(Killed):
        run(tmp_path / "parts", Doubling(), config=keeping, die_at=7)
    run(tmp_path / "parts", Doubling(), config=keeping)
    run(tmp_path / "plain", Doubling())
    assert log(tmp_path / "whole") == log(tmp_path / "parts") == log(tmp_path / "plain")
    assert sorted(path.name for path in (tmp_path / "parts").glob("step-*")) == [
        "step-12",
        "step-3",
        "step-6",
        "step-9",
    ]
    for step in (3, 6, 9, 12):
        one, other = (load_checkpoint(RunDir(str(tmp_path / name / f"step-{step}"))) for name in ("whole", "parts"))
        assert one is not None
        assert other is not None
        assert one.step == other.step == step
        assert all(torch.equal(value, other.objective[name]) for name, value in one.objective.items())


def test_a_loss_that_is_not_finite_stops_with_its_name_and_sample(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^step 3: loss 'size' is nan at segment_4 4 FRONT; look at that sample"):
        run(tmp_path, Doubling(poison=4))


def test_whatever_fails_on_the_way_to_a_loss_names_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("out of bounds")

    objective = Doubling()
    monkeypatch.setattr(objective, "collate", broken)
    with pytest.raises(IndexError) as caught:
        run(tmp_path, objective)
    (note,) = caught.value.__notes__
    assert note == f"about {sample(7).key}, {sample(14).key}, {sample(1).key}"


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(tmp_path: Path) -> None:
    objective = Doubling(poison=4, only_gradient=True)
    with pytest.raises(TrainingError, match=r"step 3: the gradient is (nan|inf) at losses .* segment_4 4 FRONT"):
        run(tmp_path, objective)
    assert all(bool(value.isfinite().all()) for value in objective.network.state_dict().values())


def test_gradients_that_are_too_long_are_scaled_down_and_logged_as_they_were(tmp_path: Path) -> None:
    objective = Doubling()
    run(tmp_path, objective, optimizer=OptimizerConfig(learning_rate=0.05, max_gradient_norm=0.01))
    left = [one.grad.flatten() for one in objective.network.parameters() if one.grad is not None]
    assert float(torch.cat(left).norm()) == pytest.approx(0.01, rel=1e-3)
    assert log(tmp_path)[-1]["gradient_norm"] > 0.1


def test_an_objective_of_another_shape_does_not_continue_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        run(tmp_path, Doubling(), die_at=5)
    monkeypatch.setattr(Doubling, "fingerprint", lambda _: {"width": 9})
    with pytest.raises(TrainingError, match="width 8 instead of 9"):
        run(tmp_path, Doubling())


def test_the_objective_is_told_of_every_step(tmp_path: Path) -> None:
    objective = Doubling()
    run(tmp_path, objective)
    assert objective.followed == pytest.approx([step / 12 for step in range(1, 13)])


def test_images_without_labels_draw_other_numbers_than_the_labelled_ones(tmp_path: Path) -> None:
    objective = Doubling()
    batch = Batch([sample(1), sample(5), sample(10)], 1, 1)
    inputs = TrainInputs(batches=lambda _: [batch], labelled=1, unlabelled=2, fingerprint={})
    train(objective, LoopConfig(steps=1, warmup=0, precision="float32"), OPTIMIZER, inputs, RunDir(str(tmp_path)))
    assert objective.places == [(0, 1, 2)]


@pytest.mark.parametrize("form", ["student", "teacher"])
def test_a_run_of_version_0_1_is_not_continued(tmp_path: Path, form: str) -> None:
    if form == "student":
        old: dict[str, Any] = {"identity": {}, "config": "{}", "step": 3, "seconds": 1.0, "lesson": {}, "optimiser": {}}
    else:
        old = {"identity": {}, "step": 3, "samples_read": 9, "seconds": 1.0, "model": {}, "optimiser": {}}
        old |= {"rng": torch.get_rng_state(), "rng_cuda": []}
    torch.save(old, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: a run of version 0\.1.* cannot be continued; give") as no:
        run(tmp_path, Doubling())
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("store", ["memory://", "s3://"])
def test_a_run_in_a_store_can_be_interrupted_as_well(
    tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    url = str(request.getfixturevalue("s3_lake")) if store == "s3://" else f"memory://runs/{uuid.uuid4().hex}"
    run(tmp_path, Doubling())
    with pytest.raises(Killed):
        run(url, Doubling(), die_at=6)
    run(url, Doubling())
    assert [line["loss/error"] for line in read_history(RunDir(url))] == [line["loss/error"] for line in log(tmp_path)]
