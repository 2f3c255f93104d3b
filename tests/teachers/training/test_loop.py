"""The training loop, on a task of one layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datalake.sample import Sample
from teachers.training.checkpoint import Plain
from teachers.training.history import read_history
from teachers.training.loop import HISTORY_FILE, LoopConfig, Trained, identity_of, train
from tests.teachers.training.samples import sample
from training.errors import TrainingError
from training.schedule import Schedule

CONFIG = LoopConfig(steps=12, batch=3, learning_rate=0.05, warmup=0.25, checkpoint_every=4, precision="float32")
EPOCH = 20


class Doubling:
    """Learns to double the sample's number, of which every fifth has no label; uses a norm and random noise.

    poison: the sample whose loss is not finite, and how: its loss, or its gradient alone
    """

    def __init__(self, poison: int | None = None, only_gradient: bool = False) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.poison, self.only_gradient = poison, only_gradient

    def hidden_weights(self) -> list[nn.Parameter]:
        return [self.network.get_parameter("0.weight"), self.network.get_parameter("3.weight")]

    def is_labelled(self, one: Sample) -> bool:
        return one.key.timestamp_us % 5 != 0

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        number = torch.tensor([[float(one.key.timestamp_us)] for one in samples]) / EPOCH
        given = number + 0.1 * torch.rand_like(number)
        # A norm cannot be trained on one value alone.
        answer = self.network(given.repeat(2, 1))[: len(samples)]
        error = (answer - 2 * number).square().mean()
        size = answer.abs().mean() * 0.01
        if any(one.key.timestamp_us == self.poison for one in samples):
            # The root of zero is zero, its slope is infinite.
            size = size + ((size - size).sqrt() if self.only_gradient else torch.tensor(torch.nan))
        return {"error": error, "size": size}


def endless(start: int) -> Iterator[Sample]:
    position = start
    while True:
        yield sample(position * 7 % EPOCH)
        position += 1


@dataclass
class Killed(Exception):  # noqa: N818 - it is no error of the loop
    step: int


def course(folder: Path, task: Doubling, *, config: LoopConfig = CONFIG, die_at: int | None = None) -> Trained:
    identity: dict[str, Plain] = {"seed": 1, **identity_of(config)}

    def progress(done: int, total: int) -> None:
        assert total == config.steps
        if done == die_at:
            raise Killed(done)

    return train(
        task, config, endless, folder, device=torch.device("cpu"), identity=identity, epoch_samples=EPOCH, seed=1,
        progress=progress,
    )  # fmt: skip


def test_losses_fall_and_everything_is_logged(tmp_path: Path) -> None:
    task = Doubling()
    config = LoopConfig(steps=200, batch=3, learning_rate=0.05, precision="float32")
    trained = course(tmp_path, task, config=config)
    lines = read_history(tmp_path / HISTORY_FILE)
    assert [line["step"] for line in lines] == list(range(200))
    assert {name for line in lines for name in line} == {"step", "learning_rate", "gradient_norm", "error", "size"}
    assert sum(line["error"] for line in lines[-20:]) < 0.3 * sum(line["error"] for line in lines[:20])
    # Of every five samples four are labelled.
    assert trained.steps == 200
    assert trained.samples_read == pytest.approx(200 * 3 * 5 / 4, abs=1)
    assert not task.network.training


def test_the_rate_in_the_log_is_the_schedule(tmp_path: Path) -> None:
    course(tmp_path, Doubling())
    schedule = Schedule(peak=0.05, steps=12, warmup_steps=3)
    logged = [line["learning_rate"] for line in read_history(tmp_path / HISTORY_FILE)]
    assert logged == [schedule.rate(step) for step in range(12)]


@pytest.mark.parametrize("die_at", [2, 4, 7, 11, 12])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path, die_at: int) -> None:
    whole, parts = Doubling(), Doubling()
    course(tmp_path / "whole", whole)
    with pytest.raises(Killed):
        course(tmp_path / "parts", parts, die_at=die_at)
    torch.rand(3)  # whatever else has drawn numbers in between
    again = Doubling()
    trained = course(tmp_path / "parts", again)
    assert read_history(tmp_path / "parts" / HISTORY_FILE) == read_history(tmp_path / "whole" / HISTORY_FILE)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    assert trained.steps == 12


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = course(tmp_path, Doubling())
    assert course(tmp_path, Doubling(), die_at=1) == first


def test_other_settings_do_not_continue_it(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        course(tmp_path, Doubling(), die_at=5)
    other = LoopConfig(**{**vars(CONFIG), "learning_rate": 0.1})
    with pytest.raises(TrainingError, match=r"learning_rate 0\.05 instead of 0\.1"):
        course(tmp_path, Doubling(), config=other)


def test_how_often_checkpoints_are_made_is_no_other_setting(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        course(tmp_path, Doubling(), die_at=5)
    oftener = LoopConfig(**{**vars(CONFIG), "checkpoint_every": 1})
    assert course(tmp_path, Doubling(), config=oftener).steps == 12


def test_a_loss_that_is_not_finite_stops_with_its_name_and_sample(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^step 3: loss 'size' is nan at segment_4 4 FRONT; look at that sample"):
        course(tmp_path, Doubling(poison=4))


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(tmp_path: Path) -> None:
    task = Doubling(poison=4, only_gradient=True)
    with pytest.raises(TrainingError, match=r"step 3: the gradient is (nan|inf) at losses .* segment_4 4 FRONT"):
        course(tmp_path, task)
    assert all(bool(value.isfinite().all()) for value in task.network.state_dict().values())


def test_norms_and_biases_do_not_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    task = Doubling()
    before = {name: value.clone() for name, value in task.network.named_parameters()}

    def losses(_: Sequence[Sample]) -> dict[str, Tensor]:
        return {"nothing": sum((p.sum() * 0 for p in task.network.parameters()), torch.zeros(()))}

    monkeypatch.setattr(task, "losses", losses)
    course(tmp_path, task)
    for name, value in task.network.named_parameters():
        assert torch.equal(value, before[name]) == (value.ndim == 1), name
