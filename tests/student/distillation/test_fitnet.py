"""A student whose pyramid is to be like a detector teacher's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from student.distillation.batch import DetectionBatch
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.fitnet import FitNet, FitNetConfig
from student.distillation.objective import DetectionObjective, LossWeights
from tests.student.students import TINY, build, objects_of, sample, samples
from training.generators import Chance
from training.objective import Batch, Loss

WIDE = replace(TINY, width=24)
PAD = FitNetConfig(variance_weighted=True)


def objective(config: FitNetConfig | None = None, teacher_seed: int = 5) -> DetectionObjective:
    """Return a student of seed 0 that learns from a wider one."""
    torch.manual_seed(1)
    teachers = {"big": DetectorTeacher(build(WIDE, teacher_seed))}
    student = build(TINY)
    torch.manual_seed(2)
    method = FitNet(config or FitNetConfig(), TINY, teachers)
    return DetectionObjective(student, LossWeights(), {"fitnet": method}, detectors=teachers)


def method_of(taught: DetectionObjective) -> FitNet:
    method = taught.methods["fitnet"]
    assert isinstance(method, FitNet)
    return method


def batch(places: list[int], labelled: int) -> DetectionBatch:
    """Return these images of a batch of four."""
    chosen = [samples(4)[place] for place in places]
    return objective().collate(Batch(chosen, labelled, 0), {}, Chance(0, 0, tuple(places)))


def with_teacher(some: DetectionBatch) -> DetectionBatch:
    """Return the batch with what the teacher makes of its images."""
    return replace(some, detectors={"big": DetectorTeacher(build(WIDE, 5)).predict(some.images)})


def fitnet(taught: DetectionObjective, some: DetectionBatch) -> Tensor:
    loss: Loss = taught(some, 0.0)["fitnet/big"]
    return loss.value


def pyramids(taught: DetectionObjective, some: DetectionBatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the student's and the teacher's features of each level."""
    with torch.no_grad():
        own = taught.student.features(some.images).pyramid
        other = build(WIDE, 5).eval().features(some.images).pyramid
    return [(one.double().numpy(), two.double().numpy()) for one, two in zip(own, other, strict=True)]


def convolutions(of_teachers: nn.ModuleDict, name: str = "big") -> list[nn.Conv2d]:
    """Return a method's convolutions for a teacher, one for each level."""
    return [module for module in of_teachers[name].modules() if isinstance(module, nn.Conv2d)]


def weights_of(convolution: nn.Conv2d) -> tuple[np.ndarray, np.ndarray]:
    assert convolution.bias is not None
    return convolution.weight.detach().double().numpy()[:, :, 0, 0], convolution.bias.detach().double().numpy()


def gradients(parameters: Iterable[nn.Parameter], losses: Mapping[str, Loss]) -> list[Tensor | None]:
    """Return the gradient of the weighted sum with respect to each parameter."""
    torch.stack([loss.weight * loss.value for loss in losses.values()]).sum().backward()
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]


@pytest.mark.parametrize("config", [FitNetConfig(), PAD], ids=["plain", "variance"])
def test_the_loss_is_the_mean_over_levels_of_the_mean_squared_error_of_each_cell(config: FitNetConfig) -> None:
    taught, some = objective(config), batch([0, 1, 2], 2)
    method = method_of(taught)
    if config.variance_weighted:
        for parameter in method.log_variances.parameters():
            nn.init.normal_(parameter, std=2.0)
    levels = []
    for level, (own, other) in enumerate(pyramids(taught, some)):
        weight, bias = weights_of(convolutions(method.adapters)[level])
        total = 0.0
        images, channels, height, width = other.shape
        for image in range(images):
            for row in range(height):
                for column in range(width):
                    features = own[image, :, row, column]
                    log_variance = 0.0
                    if config.variance_weighted:
                        predictor, start = weights_of(convolutions(method.log_variances)[level])
                        log_variance = 6 * math.tanh((float(predictor[0] @ features) + float(start[0])) / 6)
                    for channel in range(channels):
                        adapted = float(weight[channel] @ features) + float(bias[channel])
                        error = (adapted - other[image, channel, row, column]) ** 2
                        total += error / (1e-6 * config.variance_weighted + math.exp(log_variance)) + log_variance
        levels.append(total / (images * channels * height * width))
    assert len(levels) == 4
    assert float(fitnet(taught, some).detach()) == pytest.approx(sum(levels) / 4, rel=1e-5)


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    teachers = {"same": DetectorTeacher(build(TINY))}
    method = FitNet(FitNetConfig(), TINY, teachers)
    for adapter in convolutions(method.adapters, "same"):
        assert adapter.bias is not None
        nn.init.dirac_(adapter.weight)
        nn.init.zeros_(adapter.bias)
    taught = DetectionObjective(build(TINY), LossWeights(), {"fitnet": method}, detectors=teachers)
    losses = taught(batch([0, 1], 1), 0.0)
    assert losses["fitnet/same"].value.item() == 0
    losses["fitnet/same"].value.backward()
    assert all(p.grad is None or not bool(p.grad.any()) for p in taught.student.parameters())


def test_each_image_counts_as_much_as_any_other_labelled_or_not() -> None:
    taught = objective()
    together = float(fitnet(taught, batch([0, 1, 2, 3], 1)).detach())
    alone = [float(fitnet(taught, batch([place], 1)).detach()) for place in range(4)]
    assert together == pytest.approx(sum(alone) / 4, rel=1e-5)
    assert len(set(alone)) == 4
    # Its labels are not even looked at.
    other = replace(batch([0], 1), labels=[sample(0, objects_of((0, 0, 90, 60, 3, 1.0))).objects])
    assert float(fitnet(taught, other).detach()) == alone[0]


@pytest.mark.parametrize("config", [FitNetConfig(), PAD], ids=["plain", "variance"])
def test_backbone_and_adapters_learn_from_it_and_heads_and_teacher_do_not(config: FitNetConfig) -> None:
    torch.manual_seed(0)
    detector = build(WIDE, 5)
    teachers = {"big": DetectorTeacher(detector)}
    method = FitNet(config, TINY, teachers)
    taught = DetectionObjective(build(TINY), LossWeights(), {"fitnet": method}, detectors=teachers)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    fitnet(taught, batch([0, 1], 1)).backward()
    reached = {name for name, p in taught.student.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {name.partition(".")[0] for name in reached} == {"backbone"}
    # From the finest level to the coarsest.
    assert {"backbone.fuse.0.weight", "backbone.downsample.2.0.weight"} <= reached
    assert all(p.grad is not None and bool(p.grad.any()) for p in method.parameters())
    assert all(p.grad is None for p in detector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_with_weight_zero_every_gradient_of_the_student_is_as_without_it() -> None:
    none = DetectionObjective(build(TINY), LossWeights(), {})
    silent = objective(FitNetConfig(weight=0))
    expected = gradients(none.parameters(), none(batch([0, 1, 2], 2), 0.0))
    found = gradients(silent.student.parameters(), silent(batch([0, 1, 2], 2), 0.0))
    assert sum(one is not None for one in expected) > 50
    for one, other in zip(expected, found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


def test_the_product_has_no_adapters_and_their_gradient_is_clipped_apart() -> None:
    taught = objective(PAD)
    assert build(TINY).state_dict().keys() == taught.product().state_dict().keys()
    student, method = taught.parameter_groups()
    assert method.name == "fitnet"
    assert {id(p) for p in method.parameters} == {id(p) for p in method_of(taught).parameters()}
    assert len(method.parameters) == 4 * 4
    assert not {id(p) for p in student.parameters} & {id(p) for p in method.parameters}


def test_the_variance_starts_as_plain_fitnet_and_pays_where_the_error_is_large() -> None:
    plain, pad, some = objective(), objective(PAD), batch([0, 1], 2)
    start = fitnet(pad, some)
    assert float(start.detach()) == pytest.approx(float(fitnet(plain, some).detach()), rel=1e-4)
    # Errors of much above 1: a larger variance lowers the loss.
    heard = with_teacher(some)
    large = {
        name: output.with_pyramid(tuple(10 + level for level in output.pyramid))
        for name, output in heard.detectors.items()
    }
    output = pad.student.training_output(some.images, some.labels, some.generators)
    loss = method_of(pad).losses(pad.student, output, replace(heard, detectors=large), 0.0)["fitnet/big"]
    loss.value.backward()
    for predictor in convolutions(method_of(pad).log_variances):
        assert predictor.bias is not None
        assert predictor.bias.grad is not None
        assert float(predictor.bias.grad) < 0


def test_it_is_computed_in_float32_under_autocast_as_well() -> None:
    taught, some = objective(), batch([0, 1], 2)
    output = taught.student.training_output(some.images, some.labels, some.generators)
    heard = with_teacher(some)
    expected = method_of(taught).losses(taught.student, output, heard, 0.0)["fitnet/big"].value
    with torch.autocast("cpu", torch.bfloat16):
        found = method_of(taught).losses(taught.student, output, heard, 0.0)["fitnet/big"].value
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_its_settings_and_the_teachers_weights_decide_about_a_run() -> None:
    plain = objective().fingerprint()
    assert {name: plain[name] for name in plain if name.startswith("fitnet.")} == {
        "fitnet.weight": 1.0,
        "fitnet.variance_weighted": False,
    }
    for other in (objective(FitNetConfig(weight=2)), objective(PAD), objective(teacher_seed=6)):
        assert len(plain.items() ^ other.fingerprint().items()) == 2
