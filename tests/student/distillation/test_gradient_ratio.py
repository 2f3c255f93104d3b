"""How much of what the pyramid is changed by comes from the methods, and that measuring it changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from student.config import Norm, StudentConfig
from student.detector import DetectorOutput, Student
from student.distillation.batch import DetectionBatch
from student.distillation.imitation import Imitation, ImitationConfig
from student.distillation.method import DistillationMethod
from student.distillation.objective import DetectionObjective, LossWeights
from student.distillation.pkd import PKD, PKDConfig
from tests.student.students import TAUGHT, TINY, build, cycled, samples, targets_of
from training.generators import Chance
from training.loop import LoopConfig, TrainInputs, train
from training.metrics_log import read_history
from training.objective import Batch, Loss
from training.optimizer import OptimizerConfig
from training.run_dir import RunDir


class Echo(DistillationMethod):
    """Detection's own losses once more, with a weight of its own for all of them."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        """Return them."""
        del student, batch, progress
        weights = LossWeights()
        return {f"echo/{n}": Loss(v, self.factor * getattr(weights, n)) for n, v in output.losses.items()}


class Apart(DistillationMethod):
    """A loss in which the student has no part."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.ones(()))

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        """Return it."""
        del student, output, batch, progress
        return {"apart/number": Loss(self.number)}


class Watching(DistillationMethod):
    """Keeps what it is given to compare; costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramids: list[tuple[Tensor, ...]] = []

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        """Return a loss of 0."""
        del student, batch, progress
        self.pyramids.append(output.features.pyramid)
        return {"watching/nothing": Loss(0 * output.features.pyramid[0].sum())}


def objective(config: StudentConfig = TINY, **methods: DistillationMethod) -> DetectionObjective:
    return DetectionObjective(build(config), LossWeights(), methods)


@pytest.mark.parametrize("factor", [0.0, 0.5, 3.0])
def test_a_method_that_repeats_detection_has_the_ratio_of_its_weight(factor: float) -> None:
    some = objective(echo=Echo(factor), apart=Apart())
    batch = some.collate(Batch(samples(2), 2, 0), {}, Chance(0, 0, (0, 1)))
    ratios = some.diagnostics(batch, 0.5)
    assert {name: float(ratio) for name, ratio in ratios.items()} == {
        "gradient_ratio/echo": pytest.approx(factor, rel=1e-5),
        "gradient_ratio/apart": 0.0,
    }
    assert all(parameter.grad is None for parameter in some.parameters())


def trained(
    folder: Path, diagnose_every: int, config: StudentConfig, **methods: DistillationMethod
) -> tuple[list[dict[str, float]], DetectionObjective]:
    """Return the log of four steps, and what they have trained."""
    some = objective(config, **methods)
    inputs = TrainInputs(batches=cycled(samples(4), 2), labelled=2, fingerprint={})
    loop = LoopConfig(steps=4, warmup=0.0, precision="float32", diagnose_every=diagnose_every)
    train(some, loop, OptimizerConfig(), inputs, RunDir(str(folder)))
    return read_history(RunDir(str(folder))), some


def test_a_method_whose_teachers_are_all_muted_has_the_ratio_0(tmp_path: Path) -> None:
    (diagnosed, *_), _ = trained(tmp_path, 1, TINY, muted=PKD(PKDConfig(), TINY, {}))
    assert diagnosed["gradient_ratio/muted"] == 0.0


def test_imitation_which_acts_before_the_pyramid_has_none() -> None:
    some = objective(TAUGHT, imitation=Imitation(ImitationConfig(), {}), echo=Echo(0.5))
    batch = some.collate(Batch(samples(2), 2, 0), targets_of(samples(2)), Chance(0, 0, (0, 1)))
    assert all(loss.value > 0 for name, loss in some(batch, 0.5).items() if name.startswith("imitation/"))
    ratios = [name for name in some.diagnostics(batch, 0.5) if name.startswith("gradient_ratio/")]
    assert ratios == ["gradient_ratio/echo"]


def test_batch_norms_normalize_by_the_batch_while_it_is_measured() -> None:
    watching = Watching()
    some = objective(replace(TINY, norm="batch"), watching=watching).train()
    batch = some.collate(Batch(samples(2), 2, 0), {}, Chance(0, 0, (0, 1)))
    some(batch, 0.5)
    some.diagnostics(batch, 0.5)
    in_step, measured = watching.pyramids
    assert all(torch.equal(one, other) for one, other in zip(in_step, measured, strict=True))


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_every_other_step_has_it_in_the_log_and_the_training_is_the_same(tmp_path: Path, norm: Norm) -> None:
    config = replace(TINY, norm=norm)
    plain, one = trained(tmp_path / "plain", 0, config, echo=Echo(0.5))
    diagnosed, other = trained(tmp_path / "diagnosed", 2, config, echo=Echo(0.5))
    assert [line.get("gradient_ratio/echo") for line in plain] == [None] * 4
    assert [line.get("gradient_ratio/echo") for line in diagnosed] == [
        pytest.approx(0.5, rel=1e-4), None, pytest.approx(0.5, rel=1e-4), None,
    ]  # fmt: skip
    assert [line["gradient_norm"] for line in plain] == [line["gradient_norm"] for line in diagnosed]
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
