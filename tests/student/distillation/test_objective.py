"""The sum that a student descends, and what it is made of."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from student.config import StudentConfig, StudentError
from student.augmentation import Augmentation
from student.distillation.objective import Lesson, LossWeights, Material
from student.training.material import prepare
from tests.student.students import SHADES, TAUGHT, build, generators, objects_of, samples, targets_of

DETECTION = {"objectness", "proposal", "classification", "box", "depth"}
IMITATION = {"imitate/colours", "imitate/shades"}
CLASS_WEIGHTS = {"shades": torch.tensor([0.5, 2.0, 3.0])}
# The paper's.
EVEN = LossWeights(proposal=1, box=1, numbers=1, classes=1)


def lesson(weights: LossWeights | None = None, config: StudentConfig = TAUGHT) -> Lesson:
    return Lesson(build(config), weights or LossWeights(), CLASS_WEIGHTS)


def material(places: list[int], labelled: int) -> Material:
    """Return the material of these pictures of a batch of four."""
    some = samples(4)
    chosen = [some[place] for place in places]
    drawn = [generators(4)[place] for place in places]
    return prepare(chosen, labelled, targets_of(chosen), drawn, Augmentation(), torch.device("cpu"))


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in losses.items()}


def test_every_loss_of_a_batch_is_the_mean_of_its_parts() -> None:
    taught = lesson()
    total, whole = taught(material([0, 1, 2, 3], 2), 0.0)
    # As two workers cut it: each gets labelled and unlabelled pictures.
    first, second = taught(material([0, 2], 1), 0.0), taught(material([1, 3], 1), 0.0)
    assert set(whole) == DETECTION | IMITATION
    for name, value in values(whole).items():
        assert value > 0
        assert value == pytest.approx((values(first[1])[name] + values(second[1])[name]) / 2, rel=1e-4), name
    assert float(total.detach()) == pytest.approx(float((first[0] + second[0]).detach()) / 2, rel=1e-4)


def test_the_total_is_the_weighted_sum() -> None:
    weights = LossWeights(objectness=2, proposal=3, classification=4, box=5, depth=6, numbers=7, classes=8)
    total, losses = lesson(weights)(material([0, 1], 2), 0.0)
    found = values(losses)
    expected = sum(getattr(weights, name) * found[name] for name in DETECTION)
    expected += 7 * found["imitate/colours"] + 8 * found["imitate/shades"]
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)


def test_imitation_fades_along_a_cosine_and_detection_does_not() -> None:
    taught = lesson(LossWeights(numbers=4, classes=2, final=0.25))
    assert [taught.weight("imitate/colours", done) for done in (0, 0.5, 1)] == pytest.approx([4, 2.5, 1])
    assert [taught.weight("imitate/shades", done) for done in (0, 0.5, 1)] == pytest.approx([2, 1.25, 0.5])
    assert [taught.weight("depth", done) for done in (0, 0.5, 1)] == [1, 1, 1]


def test_cells_with_objects_count_more_in_every_branch() -> None:
    plain, heavy = lesson(LossWeights(objects=1)), lesson(LossWeights(objects=5))
    before, after = (values(one(material([0, 1], 2), 0.0)[1]) for one in (plain, heavy))
    assert {name for name in before if before[name] != after[name]} == IMITATION


def test_rare_classes_weigh_what_the_lesson_was_told() -> None:
    even = Lesson(build(TAUGHT), LossWeights(), {"shades": torch.ones(3)})
    before, after = (values(one(material([0, 1], 2), 0.0)[1]) for one in (even, lesson()))
    assert {name for name in before if before[name] != after[name]} == {"imitate/shades"}


def test_pictures_without_labels_teach_imitation_alone() -> None:
    taught, some = lesson(), material([0, 2], 1)
    _, losses = taught(some, 0.0)
    # Their labels are not even there; what stands in the sample must not come back in.
    disturbed = samples(4)
    disturbed[2] = replace(disturbed[2], objects=objects_of((0, 0, 90, 60, 3, 1.0)))
    chosen = [disturbed[0], disturbed[2]]
    drawn = [generators(4)[place] for place in (0, 2)]
    again = prepare(chosen, 1, targets_of(chosen), drawn, Augmentation(), torch.device("cpu"))
    assert values(taught(again, 0.0)[1]) == values(losses)
    # And the picture itself changes what is imitated, but not what is detected.
    chosen[1] = samples(4)[3]
    drawn = [generators(4)[place] for place in (0, 3)]
    other = prepare(chosen, 1, targets_of(chosen), drawn, Augmentation(), torch.device("cpu"))
    found = values(taught(other, 0.0)[1])
    for name, value in values(losses).items():
        assert (found[name] == pytest.approx(value, rel=1e-4)) == (name in DETECTION), name


def test_a_branch_whose_teacher_is_silent_takes_part_with_nothing() -> None:
    taught, some = lesson(EVEN), material([0, 1], 2)
    silent = replace(some, targets={})
    total, losses = taught(silent, 0.0)
    assert set(losses) == DETECTION
    assert float(total.detach()) == pytest.approx(sum(values(losses).values()), rel=1e-5)
    total.backward()
    say = taught.student.get_parameter("backbone.branches.colours.say.weight")
    assert say.grad is not None


def test_learned_weights_move_towards_losses_that_count_the_same() -> None:
    taught = lesson(replace(EVEN, balance="learned"))
    assert taught.balance is not None
    total, losses = taught(material([0, 1], 2), 0.0)
    assert float(total.detach()) == pytest.approx(sum(values(losses).values()), rel=1e-5)
    total.backward()
    assert taught.balance.grad is not None
    slopes = dict(zip(losses, taught.balance.grad.tolist(), strict=True))
    # d/ds of exp(-s) L + s at s = 0: losses above 1 are weighed down, those below are weighed up.
    for name, value in values(losses).items():
        assert slopes[name] == pytest.approx(1 - value, rel=1e-4, abs=1e-5)


def test_a_learned_balance_leaves_the_weights_what_they_are() -> None:
    taught = lesson(replace(EVEN, balance="learned", box=3.0, numbers=0.5))
    assert taught.balance is not None
    _, losses = taught(material([0, 1], 2), 0.0)
    # Where each scale has settled, each loss counts its weight.
    taught.balance.data = torch.tensor([math.log(value) for value in values(losses).values()])
    total, losses = taught(material([0, 1], 2), 0.0)
    slopes = torch.autograd.grad(total, list(losses.values()), retain_graph=True)
    told = {name: float(slope) * values(losses)[name] for name, slope in zip(losses, slopes, strict=True)}
    weights = {name: 3.0 if name == "box" else 0.5 if name == "imitate/colours" else 1.0 for name in losses}
    assert told == pytest.approx(weights, rel=1e-4)
    (settled,) = torch.autograd.grad(total, taught.balance)
    assert settled.abs().max() < 1e-4


def test_class_weights_are_part_of_the_state() -> None:
    first, second = lesson(), Lesson(build(TAUGHT, seed=1), LossWeights(), {"shades": torch.ones(3)})
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.class_weights["shades"], CLASS_WEIGHTS["shades"])
    assert not second.class_weights["shades"].requires_grad


def test_a_teacher_without_a_branch_is_named() -> None:
    some = material([0, 1], 2)
    untaught = Lesson(build(replace(TAUGHT, branches=(SHADES,))), LossWeights(), CLASS_WEIGHTS)
    with pytest.raises(StudentError, match=r"teacher colours: this student has no branch for it; it has \['shades'\]"):
        untaught(some, 0.0)


def test_a_target_of_another_shape_is_refused() -> None:
    some = material([0, 1], 2)
    colours = some.targets["colours"]
    narrow = replace(colours, values=colours.values[:, :2])
    with pytest.raises(StudentError, match=r"teacher colours: expected .*\[2, 3, 16, 24\], got: \[2, 2, 16, 24\]"):
        lesson()(replace(some, targets={"colours": narrow}), 0.0)


def test_no_loss_is_nan_where_pictures_show_nothing() -> None:
    some = material([0, 1], 2)
    nothing = replace(some, labels=[objects_of(), objects_of()], targets=targets_of(samples(2), blind=16))
    total, losses = lesson()(nothing, 0.0)
    assert all(map(math.isfinite, values(losses).values()))
    assert {name for name, value in values(losses).items() if value == 0} == IMITATION | {"proposal", "box", "depth"}
    total.backward()
