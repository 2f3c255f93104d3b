"""The losses that a student minimizes, and what they are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from student.config import StudentConfig, StudentError
from student.detector import DetectorOutput, Student
from student.distillation.batch import DetectionBatch
from student.distillation.imitation import Imitation, ImitationConfig
from student.distillation.method import DistillationMethod
from student.distillation.objective import DetectionObjective, LossWeights
from tests.student.students import SHADES, TAUGHT, build, objects_of, samples, targets_of
from training.generators import Chance
from training.objective import Batch, Loss

DETECTION = {"objectness", "rpn_box", "classification", "box", "depth"}
IMITATION = {"imitation/colors", "imitation/shades"}
CLASS_WEIGHTS = {"shades": torch.tensor([0.5, 2.0, 3.0])}


def objective(
    weights: LossWeights | None = None,
    imitation: ImitationConfig | None = None,
    config: StudentConfig = TAUGHT,
    class_weights: Mapping[str, Tensor] = CLASS_WEIGHTS,
) -> DetectionObjective:
    method = Imitation(imitation or ImitationConfig(), class_weights)
    return DetectionObjective(build(config), weights or LossWeights(), {"imitation": method})


def batch(places: list[int], labelled: int) -> DetectionBatch:
    """Return these images of a batch of four."""
    some = samples(4)
    chosen = [some[place] for place in places]
    chance = Chance(0, 0, tuple(places))
    return objective().collate(Batch(chosen, labelled, 0), targets_of(chosen), chance)


def values(losses: Mapping[str, Loss]) -> dict[str, float]:
    return {name: float(loss.value.detach()) for name, loss in losses.items()}


def weights_of(losses: Mapping[str, Loss]) -> dict[str, float]:
    return {name: loss.weight for name, loss in losses.items()}


def gradients(module: nn.Module, losses: Mapping[str, Loss]) -> list[Tensor | None]:
    """Return the gradient of the weighted sum with respect to each parameter."""
    module.zero_grad()
    torch.stack([loss.weight * loss.value for loss in losses.values()]).sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def test_every_loss_of_a_batch_is_the_mean_of_its_parts() -> None:
    taught = objective()
    whole = taught(batch([0, 1, 2, 3], 2), 0.0)
    # As two workers cut it: each gets labelled and unlabelled images.
    first, second = taught(batch([0, 2], 1), 0.0), taught(batch([1, 3], 1), 0.0)
    assert set(whole) == DETECTION | IMITATION
    for name, value in values(whole).items():
        assert value > 0
        assert value == pytest.approx((values(first)[name] + values(second)[name]) / 2, rel=1e-4), name


def test_each_loss_has_its_own_weight() -> None:
    weights = LossWeights(objectness=2, rpn_box=3, classification=4, box=5, depth=6)
    losses = objective(weights, ImitationConfig(regression=7, classification=8))(batch([0, 1], 2), 0.0)
    expected = {name: getattr(weights, name) for name in DETECTION}
    assert weights_of(losses) == {**expected, "imitation/colors": 7, "imitation/shades": 8}


def test_imitation_fades_along_a_cosine_and_detection_does_not() -> None:
    taught, some = (
        objective(imitation=ImitationConfig(regression=4, classification=2, final_factor=0.25)),
        batch([0], 1),
    )
    found = [weights_of(taught(some, progress)) for progress in (0, 0.5, 1)]
    assert [weights["imitation/colors"] for weights in found] == pytest.approx([4, 2.5, 1])
    assert [weights["imitation/shades"] for weights in found] == pytest.approx([2, 1.25, 0.5])
    assert [weights["depth"] for weights in found] == [1, 1, 1]


def test_foreground_cells_count_more_in_every_branch() -> None:
    plain, heavy = (objective(imitation=ImitationConfig(foreground_factor=factor)) for factor in (1, 5))
    before, after = (values(one(batch([0, 1], 2), 0.0)) for one in (plain, heavy))
    assert {name for name in before if before[name] != after[name]} == IMITATION


def test_class_weights_change_that_teachers_loss_alone() -> None:
    even = objective(class_weights={"shades": torch.ones(3)})
    before, after = (values(one(batch([0, 1], 2), 0.0)) for one in (even, objective()))
    assert {name for name in before if before[name] != after[name]} == {"imitation/shades"}


def test_images_without_labels_teach_imitation_alone() -> None:
    taught = objective()
    losses = values(taught(batch([0, 2], 1), 0.0))

    def changed(image_of: int, objects: tuple[float, float, float, float, int, float]) -> dict[str, float]:
        some = samples(4)
        chosen = [some[0], replace(some[image_of], objects=objects_of(objects))]
        chance = Chance(0, 0, (0, 2))
        return values(taught(taught.collate(Batch(chosen, 1, 0), targets_of(chosen), chance), 0.0))

    # Their labels are not even there: others change nothing.
    assert changed(2, (0, 0, 90, 60, 3, 1.0)) == losses
    # Another image changes what is imitated, but not what is detected.
    found = changed(3, (0, 0, 90, 60, 3, 1.0))
    for name, value in losses.items():
        assert (found[name] == pytest.approx(value, rel=1e-4)) == (name in DETECTION), name


def test_without_targets_there_are_detections_losses_alone() -> None:
    losses = objective()(replace(batch([0, 1], 2), targets={}), 0.0)
    assert set(losses) == DETECTION


def test_a_method_of_weight_zero_leaves_every_gradient_as_without_it() -> None:
    none = DetectionObjective(build(TAUGHT), LossWeights(), {})
    silent = objective(imitation=ImitationConfig(regression=0, classification=0))
    expected = gradients(none, none(batch([0, 1, 2], 2), 0.0))
    found = gradients(silent.student, silent(batch([0, 1, 2], 2), 0.0))
    for one, other in zip(expected, found, strict=True):
        # The norm of a branch of classes is in no forward pass.
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)
    assert sum(one is not None for one in expected) > 50


class Drawing(DistillationMethod):
    """Draws as many random numbers as it likes, and has a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def losses(
        self, student: Student, output: DetectorOutput, batch: DetectionBatch, progress: float
    ) -> dict[str, Loss]:
        del student, progress
        drawn = [torch.rand(1000, generator=generator).sum() for generator in batch.chance.generators("drawing")]
        return {"drawing/all": Loss(self.scale * torch.stack(drawn).sum() + 0 * output.features.pyramid[0].sum(), 1.0)}


def test_a_method_that_draws_numbers_does_not_change_the_students_sampling() -> None:
    expected = values(objective()(batch([0, 1], 2), 0.0))
    beside = DetectionObjective(build(TAUGHT), LossWeights(), {"drawing": Drawing()})
    found = values(beside(batch([0, 1], 2), 0.0))
    assert {name: found[name] for name in DETECTION} == {name: expected[name] for name in DETECTION}


def test_a_methods_parameters_are_clipped_apart_and_never_part_of_the_product() -> None:
    beside = DetectionObjective(build(TAUGHT), LossWeights(), {"drawing": Drawing()})
    student, methods = beside.parameter_groups()
    assert [id(p) for p in student.parameters] == [id(p) for p in beside.student.parameters()]
    assert [tuple(p.shape) for p in methods.parameters] == [()]
    assert beside.product() is beside.student


def test_two_methods_with_one_name_of_a_loss_are_refused() -> None:
    twice = DetectionObjective(build(TAUGHT), LossWeights(), {"one": Drawing(), "two": Drawing()})
    with pytest.raises(StudentError, match="method two: there is a loss drawing/all already"):
        twice(batch([0, 1], 2), 0.0)


def test_class_weights_are_part_of_the_state() -> None:
    first, second = objective(), objective(class_weights={"shades": torch.ones(3)})
    second.load_state_dict(first.state_dict())
    state = second.state_dict()
    assert torch.equal(state["methods.imitation.class_weights.shades"], CLASS_WEIGHTS["shades"])


def test_a_teacher_without_a_branch_is_named() -> None:
    untaught = objective(config=replace(TAUGHT, branches=(SHADES,)))
    with pytest.raises(StudentError, match=r"teacher colors: this student has no branch for it; it has \['shades'\]"):
        untaught(batch([0, 1], 2), 0.0)


def test_a_target_of_another_shape_is_refused() -> None:
    some = batch([0, 1], 2)
    colors = some.targets["colors"]
    narrow = replace(colors, values=colors.values[:, :2])
    with pytest.raises(StudentError, match=r"teacher colors: expected .*\[2, 3, 16, 24\], got: \[2, 2, 16, 24\]"):
        objective()(replace(some, targets={"colors": narrow}), 0.0)


def test_no_loss_is_nan_where_images_show_nothing() -> None:
    taught, some = objective(), batch([0, 1], 2)
    nothing = replace(some, labels=[objects_of(), objects_of()], targets=targets_of(samples(2), blind=16))
    losses = taught(nothing, 0.0)
    assert all(map(math.isfinite, values(losses).values()))
    assert {name for name, value in values(losses).items() if value == 0} == IMITATION | {"rpn_box", "box", "depth"}
    assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients(taught, losses))


@pytest.mark.parametrize("targets", ["shuffled", "random"])
def test_a_control_changes_what_is_imitated_and_nothing_else(targets: str) -> None:
    some = samples(4)
    chance, taught = Chance(0, 0, (0, 1, 2, 3)), objective()
    real = taught(taught.collate(Batch(some, 4, 0), targets_of(some), chance), 0.0)
    taught.targets = targets  # type: ignore[assignment]
    wrong = taught(taught.collate(Batch(some, 4, 0), targets_of(some), chance), 0.0)
    assert {name for name in real if values(real)[name] != values(wrong)[name]} == IMITATION
