"""Attacks stay within their bounds, do what the gradient says, and change nothing but images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from datalake.sample import Sample
from student.config import StudentError
from student.distillation.imitation import Imitation, ImitationConfig
from student.distillation.objective import DetectionObjective, LossWeights
from student.evaluation.attack import (
    CLEAN,
    DEPTH_OF_LABELS,
    NOISE,
    SUM,
    Attack,
    AttackBatch,
    AttackResult,
    AttackStrength,
    attack_student,
    attacked_images,
    projected_gradient,
)
from student.evaluation.run import evaluate_student
from tests.student.students import TAUGHT, TINY, build, generators, objects_of, sample, samples, targets_of

FOUR = samples(4)
QUICK = AttackStrength(steps=3)
UNCHANGED = Attack(goal=CLEAN, epsilon=0)
EPSILON = 8 / 255


def images(seed: int = 0) -> Tensor:
    """Return images of which some values are 0 and some are 1."""
    drawn = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (1.4 * drawn - 0.2).clamp(0, 1)


def start_of(shape: torch.Size, seed: int = 1) -> Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def taught() -> DetectionObjective:
    """Return the losses of a student with two teachers, with weights by chance."""
    return DetectionObjective(
        build(TAUGHT), LossWeights(box=7.0), {"imitation": Imitation(ImitationConfig(), {})}
    ).eval()


def clean(some: Sequence[Sample] = FOUR, first: int = 0) -> AttackBatch:
    return AttackBatch(samples=some, targets=targets_of(some), places=tuple(range(first, first + len(some))))


def outcomes(attacks: Sequence[Attack], strength: AttackStrength = QUICK) -> list[AttackResult]:
    return attack_student(taught(), [clean(FOUR[:3]), clean(FOUR[3:], 3)], attacks, strength)


def test_of_a_linear_loss_the_attack_is_its_closed_form() -> None:
    x = images()
    w = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    found = projected_gradient(x, lambda one, _: (w * one).sum(), start_of(x.shape), EPSILON, 10)
    torch.testing.assert_close(found, (x + EPSILON * w.sign()).clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("epsilon", [1 / 255, 8 / 255, 0.5])
def test_the_attack_stays_in_the_ball_and_among_images(epsilon: float) -> None:
    x = images()
    found = projected_gradient(x, lambda one, step: (30 * one + step).sin().sum(), start_of(x.shape), epsilon, 7)
    assert float((found - x).abs().max()) <= epsilon + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert not torch.equal(found, x)


def test_an_attack_of_size_zero_changes_nothing() -> None:
    x = images()
    assert torch.equal(projected_gradient(x, lambda one, _: one.square().sum(), start_of(x.shape), 0.0, 5), x)


def test_without_an_attack_the_metrics_are_those_of_an_evaluation() -> None:
    (outcome,) = outcomes([UNCHANGED])
    evaluated = dict(evaluate_student(taught().student, [FOUR[:3], FOUR[3:]], None).metrics)
    del evaluated["images_per_second"]
    assert evaluated.items() <= outcome.metrics.items()
    assert {name for name in outcome.metrics if name not in evaluated} == {
        DEPTH_OF_LABELS,
        *(f"loss/{name}" for name in ("objectness", "rpn_box", "classification", "box", "depth", SUM)),
        "loss/imitation/colors",
        "loss/imitation/shades",
    }


def test_the_sum_has_the_trainings_weights() -> None:
    (outcome,) = outcomes([UNCHANGED])
    loss = {name.removeprefix("loss/"): value for name, value in outcome.metrics.items() if name.startswith("loss/")}
    imitation = 2 * loss["imitation/colors"] + 2 * loss["imitation/shades"]
    detection = loss["objectness"] + 3 * loss["rpn_box"] + loss["classification"] + 7 * loss["box"] + loss["depth"]
    assert loss[SUM] == pytest.approx(imitation + detection, rel=1e-5)


@pytest.mark.parametrize("goal", ["classification", "imitation/colors", "imitation/shades", SUM])
def test_an_attack_raises_the_loss_that_it_is_on_more_than_noise_does(goal: str) -> None:
    noise, attacked = outcomes([Attack(goal=NOISE, epsilon=4), Attack(goal=goal, epsilon=4)])
    assert attacked.metrics[f"loss/{goal}"] > noise.metrics[f"loss/{goal}"]


def test_noise_is_as_large_as_an_attack_may_be() -> None:
    noise = attacked_images(taught(), clean(), Attack(goal=NOISE, epsilon=4), QUICK)
    before = torch.stack([one.image for one in FOUR]).float() / 255
    inside = (before > 4 / 255) & (before < 1 - 4 / 255)
    change = (noise - before)[inside].abs()
    torch.testing.assert_close(change, torch.full_like(change, 4 / 255), rtol=0, atol=1e-6)


def test_the_seed_decides_about_an_attack_and_no_other_random_number_does() -> None:
    objective, attack = taught(), Attack(goal=SUM, epsilon=4)
    state = torch.get_rng_state()
    first = attacked_images(objective, clean(), attack, QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(first, attacked_images(objective, clean(), attack, QUICK))
    assert not torch.equal(first, attacked_images(objective, clean(), attack, replace(QUICK, seed=1)))


def test_random_numbers_belong_to_images_however_these_are_grouped() -> None:
    noise = Attack(goal=NOISE, epsilon=4)
    together = attacked_images(taught(), clean(), noise, QUICK)
    apart = [attacked_images(taught(), clean(FOUR[i : i + 2], i), noise, QUICK) for i in (0, 2)]
    assert torch.equal(together, torch.cat(apart))


def test_a_student_is_the_same_after_it_was_attacked() -> None:
    objective = taught()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    attack_student(objective, [clean()], [Attack(goal=SUM, epsilon=4)], QUICK)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_depths_are_judged_at_the_labelled_boxes() -> None:
    objective = taught()
    one = FOUR[0]
    (outcome,) = attack_student(objective, [clean([one])], [UNCHANGED], QUICK)
    pyramid = objective.student.features(one.image[None]).pyramid
    rois = torch.cat([torch.zeros(3, 1), one.objects.boxes], 1)
    predicted = objective.student.heads.depths_m(pyramid, rois, one.objects.classes, (64, 96))
    expected = [abs(p / t - 1) for p, t in zip(predicted.tolist(), one.objects.depth_m.tolist(), strict=True)]
    assert outcome.metrics[DEPTH_OF_LABELS] == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_an_attack_breaks_a_trained_student_as_noise_does_not() -> None:
    student = build(replace(TINY, min_score=0.05)).train()
    batch = torch.stack([one.image for one in FOUR])
    optimizer = torch.optim.AdamW(student.parameters(), 4e-3)
    for step in range(60):
        losses = student.training_output(batch, [one.objects for one in FOUR], generators(4, step)).losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    objective = DetectionObjective(student, LossWeights(), {}).eval()
    whole = AttackBatch(samples=FOUR, targets={}, places=(0, 1, 2, 3))
    attacks = [UNCHANGED, *(Attack(goal=goal, epsilon=32) for goal in (NOISE, SUM))]
    before, noise, attacked = (
        one.metrics for one in attack_student(objective, [whole], attacks, AttackStrength(steps=10))
    )
    assert before["AP50"] > 0.5
    assert attacked["AP50"] < noise["AP50"] - 0.2
    assert attacked["loss/sum"] > 2 * noise["loss/sum"]


def test_a_loss_that_there_is_not_is_refused() -> None:
    with pytest.raises(StudentError, match=r"attack on boxes: no such loss; there are: objectness"):
        outcomes([Attack(goal="boxes", epsilon=4)])


def test_images_without_labels_are_refused() -> None:
    bare = [sample(0, objects_of())]
    with pytest.raises(StudentError, match="none of the images has a labelled object"):
        attack_student(taught(), [clean(bare)], [UNCHANGED], QUICK)


def test_a_loss_that_is_not_finite_is_refused_with_its_images() -> None:
    broken = replace(FOUR[1], objects=replace(FOUR[1].objects, boxes=FOUR[1].objects.boxes * torch.nan))
    with pytest.raises(StudentError, match=r"segment_1 1 FRONT: the loss \w+ is not finite"):
        attack_student(taught(), [clean([broken])], [UNCHANGED], QUICK)


def test_a_student_in_training_is_refused() -> None:
    with pytest.raises(StudentError, match="call eval"):
        attack_student(taught().train(), [clean()], [UNCHANGED], QUICK)


def test_an_attack_made_elsewhere_is_shown_as_it_is_and_fewer_steps_do_less() -> None:
    objective, batches = taught(), [clean(FOUR[:3]), clean(FOUR[3:], 3)]
    elsewhere = Attack(goal=SUM, epsilon=8, source="other")
    images = [attacked_images(objective, one, Attack(goal=SUM, epsilon=8), QUICK) for one in batches]
    attacks = [Attack(goal=SUM, epsilon=8), elsewhere, Attack(goal=SUM, epsilon=8, steps=0)]
    own, shown, start = attack_student(objective, batches, attacks, QUICK, ready={elsewhere: images})
    assert shown.metrics == own.metrics
    assert start.metrics["loss/sum"] < own.metrics["loss/sum"]
    assert [str(one.attack) for one in (own, shown, start)] == [
        "sum 8/255", "sum 8/255 of other", "sum 8/255, 0 steps",
    ]  # fmt: skip
    with pytest.raises(StudentError, match="expected the images that were made from other"):
        attack_student(objective, batches, [elsewhere], QUICK)
