"""What holds of every method by which a detector teaches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from student import labels as labels_module
from student.detector import DetectorOutput, Student
from student.distillation.batch import DetectionBatch
from student.distillation.crosskd import CrossKD, CrossKDConfig
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.fgfi import FGFI, FGFIConfig
from student.distillation.fitnet import FitNet, FitNetConfig
from student.distillation.kd import KD, KDConfig
from student.distillation.lgd import LGD, LGDConfig
from student.distillation.method import DistillationMethod
from student.distillation.objective import DetectionObjective, LossWeights
from student.distillation.pkd import PKD, PKDConfig
from student.distillation.reviewkd import ReviewKD, ReviewKDConfig
from student.roi_heads import RoIPredictions
from tests.student.distillation.taught import WIDE, batch, decided, of_method, taught, total
from tests.student.students import TINY, cycled, samples
from training.fingerprint import Plain
from training.loop import LoopConfig, TrainInputs, train
from training.metrics_log import read_history
from training.objective import Loss
from training.optimizer import OptimizerConfig, build_optimizer
from training.run_dir import RunDir

Build = Callable[[float, Mapping[str, DetectorTeacher]], DistillationMethod]
# By the names of `--distill`, each made with a weight for all of its losses.
METHODS: dict[str, Build] = {
    "fitnet": lambda weight, detectors: FitNet(FitNetConfig(weight=weight), TINY, detectors),
    "kd": lambda weight, _: KD(KDConfig(weight=weight, depth=weight)),
    "pkd": lambda weight, detectors: PKD(PKDConfig(weight=weight), TINY, detectors),
    "crosskd": lambda weight, detectors: CrossKD(CrossKDConfig(classification=weight, box=weight), TINY, detectors),
    "fgfi": lambda weight, detectors: FGFI(FGFIConfig(weight=weight, min_score=0.1), TINY, detectors),
    "reviewkd": lambda weight, detectors: ReviewKD(ReviewKDConfig(weight=weight), TINY, detectors),
}
every_method = pytest.mark.parametrize("build", METHODS.values(), ids=METHODS)


def objective(build: Build, weight: float = 1.0, detector: Student | None = None) -> DetectionObjective:
    """Return a student that learns from a wider detector."""
    detectors = {"big": DetectorTeacher(decided(WIDE, 5) if detector is None else detector)}
    torch.manual_seed(2)
    return taught(build(weight, detectors), detectors)


def gradients(some: DetectionObjective, *, bfloat16: bool = False) -> list[Tensor | None]:
    """Return the gradient of each parameter of the student in a step with images of both kinds."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        losses = some(batch([0, 1, 2], 2), 0.0)
    total(losses.values()).backward()
    return [None if p.grad is None else p.grad for p in some.student.parameters()]


def test_labels_go_to_the_device_once_in_a_step_whatever_methods_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[tuple[int, ...]] = []
    buffer = labels_module.host_buffer

    def counted(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        packed.append(shape)
        return buffer(shape, dtype, device)

    monkeypatch.setattr(labels_module, "host_buffer", counted)
    detectors = {"big": DetectorTeacher(decided(WIDE, 5))}
    methods = {name: build(1.0, detectors) for name, build in METHODS.items()}
    methods["lgd"] = LGD(LGDConfig(), TINY, LossWeights())
    some = DetectionObjective(decided(TINY), LossWeights(), methods, detectors=detectors)
    found = some(batch([0, 1, 2], 2), 1.0)
    assert {name.partition("/")[0] for name in found} >= methods.keys()
    assert packed == [(2, 3, 6)]


@pytest.mark.parametrize("bfloat16", [False, True])
@every_method
def test_with_weight_zero_every_gradient_of_the_student_is_as_without_it(build: Build, bfloat16: bool) -> None:
    expected = gradients(taught(None, {}), bfloat16=bfloat16)
    found = gradients(objective(build, weight=0.0), bfloat16=bfloat16)
    assert sum(one is not None for one in expected) > 50
    for one, other in zip(expected, found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


@every_method
def test_each_image_counts_as_much_as_any_other_labelled_or_not(build: Build) -> None:
    some = objective(build)

    def losses(places: list[int], labelled: int) -> dict[str, float]:
        found = of_method(some(batch(places, labelled), 0.0))
        assert found
        return {name: len(places) * float(loss.value.detach()) for name, loss in found.items()}

    together, first, second = losses([0, 1, 2, 3], 2), losses([0], 1), losses([1], 1)
    beside = losses([0, 2], 1), losses([0, 3], 1)
    for name, found in together.items():
        images = [first[name], second[name], *(two[name] - first[name] for two in beside)]
        assert found == pytest.approx(sum(images), rel=1e-4)
        assert len(set(images)) == 4


@every_method
def test_the_teacher_is_the_same_after_an_optimizer_step(build: Build) -> None:
    # Batch norms would count what they see in training mode.
    detector = decided(replace(WIDE, norm="batch"), 5)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    some = objective(build, detector=detector).train()
    optimizer = build_optimizer(some.parameter_groups(), OptimizerConfig(), bfloat16=False)
    optimizer.set_lr(1e-2)
    weight = some.student.get_parameter("backbone.fuse.0.weight")
    start = weight.detach().clone()
    total(some(batch([0, 1, 2], 2), 0.0).values()).backward()
    assert all(parameter.grad is None for parameter in detector.parameters())
    optimizer.step()
    assert not torch.equal(weight, start)
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


@every_method
def test_under_autocast_its_losses_are_float32_and_about_the_same(build: Build) -> None:
    some = objective(build)
    expected = of_method(some(batch([0, 1, 2], 2), 0.0))
    with torch.autocast("cpu", torch.bfloat16):
        found = of_method(some(batch([0, 1, 2], 2), 0.0))
    for name, loss in found.items():
        assert loss.value.dtype == torch.float32
        assert float(loss.value.detach()) == pytest.approx(float(expected[name].value.detach()), rel=0.3)


class Detached(DistillationMethod):
    """Gives a method what the student computed as constants."""

    def __init__(self, method: DistillationMethod) -> None:
        super().__init__()
        self.method = method

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        constant = copy.deepcopy(student).requires_grad_(False)
        predictions = output.predictions
        return self.method.losses(
            constant,
            replace(
                output,
                features=replace(output.features, pyramid=tuple(level.detach() for level in output.features.pyramid)),
                predictions=RoIPredictions(
                    predictions.pooled.detach(), predictions.logits.detach(), predictions.deltas.detach()
                ),
            ),
            batch,
            progress,
        )

    def fingerprint(self) -> dict[str, Plain]:
        return self.method.fingerprint()


def run(some: DetectionObjective, folder: Path) -> list[dict[str, float]]:
    """Train for three steps; return the losses and the norm of the student's gradient."""
    # Far below the norms that there are: with one norm for student and method, the method would slow the student down.
    optimizer = OptimizerConfig(learning_rate=1e-2, max_gradient_norm=0.01)
    inputs = TrainInputs(batches=cycled(samples(6), 2, 1), labelled=2, unlabelled=1, seed=1, fingerprint={})
    config = LoopConfig(steps=3, warmup=0.0, precision="float32")
    train(some, config, optimizer, inputs, RunDir(str(folder)))
    return read_history(RunDir(str(folder)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[DetectionObjective, list[dict[str, float]]]:
    """A student without distillation, and its losses."""
    some = taught(None, {})
    return some, run(some, tmp_path_factory.mktemp("plain"))


@pytest.mark.integration
@every_method
def test_with_the_students_features_detached_training_is_as_without_it(
    build: Build, plain: tuple[DetectionObjective, list[dict[str, float]]], tmp_path: Path
) -> None:
    attached, detached = objective(build), objective(lambda *made: Detached(build(*made)))
    lines = {name: run(some, tmp_path / name) for name, some in (("one", attached), ("other", detached))}
    expected, logged = plain
    names = [name for name in logged[0] if name.startswith("loss/")]
    for line, other in zip(logged, lines["other"], strict=True):
        assert {name: line[name] for name in [*names, "gradient_norm"]} == {
            name: other[name] for name in [*names, "gradient_norm"]
        }
    found = detached.student.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.student.state_dict().items())
    # What is compared does change where the features are attached.
    assert [line["gradient_norm"] for line in lines["one"]] != [line["gradient_norm"] for line in logged]
