"""Attacks on a student by its losses' gradients: which loss breaks which task (ClassroomNet, section 4.4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datalake.sample import Sample
from student.config import StudentError
from student.detections import Detections
from student.detector import Student
from student.distillation.batch import DetectionBatch
from student.distillation.objective import DetectionObjective
from student.evaluation.run import Example, evaluate_student, most_labelled
from teachers.target import Target
from training.generators import Chance

# What is done to images beside raising one loss by its name: nothing, random signs, raising the weighted sum.
CLEAN, NOISE, SUM = "clean", "noise", "sum"
# Relative error of the depths that are predicted for the labelled boxes, whether or not the student finds them.
DEPTH_OF_LABELS = "depth/AbsRel@labels"
# Of epsilon, in each step.
_STEP = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What is done to images.

    goal: the name of a loss that is to become large, SUM, NOISE or CLEAN
    epsilon: the most that a value of a pixel changes, in 255ths of its range
    steps: how many; None: as many as AttackStrength says
    source: the run whose loss was raised, and whose images this student is shown; None: its own
    """

    goal: str
    epsilon: float
    steps: int | None = None
    source: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it has all its steps, and this student's own loss was raised."""
        return self.steps is None and self.source is None

    def __str__(self) -> str:
        if self.goal == CLEAN:
            return self.goal
        steps = "" if self.steps is None else f", {self.steps} step{'' if self.steps == 1 else 's'}"
        return f"{self.goal} {self.epsilon:g}/255{steps}" + ("" if self.source is None else f" of {self.source}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackStrength:
    """How attacks are made.

    seed: decides where they start, and which anchors and proposals their losses look at
    """

    steps: int = 10
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttackBatch:
    """A batch of images as they are.

    targets: what map teachers say of them; asked once, they never see an attacked image
    places: the images' numbers among all, which decide about their random numbers
    """

    samples: Sequence[Sample]
    targets: Mapping[str, Target]
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttackResult:
    """What an attack has done.

    images, objects: how many there are, labelled ones of the latter
    metrics: all of an evaluation but its pace, DEPTH_OF_LABELS, and of each loss, and SUM, `loss/<name>`
    examples: the images with the most labels, attacked, with what the student finds in them
    """

    attack: Attack
    images: int
    objects: int
    metrics: dict[str, float]
    examples: list[Example]


def projected_gradient(
    images: Tensor, loss: Callable[[Tensor, int], Tensor], start: Tensor, epsilon: float, steps: int
) -> Tensor:
    """Return images that raise a loss as far as they can (projected gradient ascent, Madry et al. 2018).

    No value is further than `epsilon` from that of the images, float32 [B, 3, H, W] within 0 … 1, nor outside of these.

    loss: a scalar, of images and the number of the step; of each image its own addend, of which the sign alone counts
    start: float32 [B, 3, H, W] within -1 … 1, where between the bounds the attack begins
    """
    low, high = (images - epsilon).clamp(min=0.0), (images + epsilon).clamp(max=1.0)
    attacked = (images + epsilon * start).clamp(low, high)
    for step in range(steps):
        with torch.enable_grad():
            attacked = attacked.detach().requires_grad_()
            value = loss(attacked, step)
        (gradient,) = torch.autograd.grad(value, attacked)
        attacked = (attacked.detach() + _STEP * epsilon * gradient.sign()).clamp(low, high)
    return attacked.detach()


def attack_student(
    objective: DetectionObjective,
    batches: Sequence[AttackBatch],
    attacks: Sequence[Attack],
    strength: AttackStrength,
    progress: Callable[[int], None] = lambda _images: None,
    ready: Mapping[Attack, Sequence[Tensor]] | None = None,
) -> list[AttackResult]:
    """Return what each of the attacks does to the objective's student on the images.

    The images alone change: the student is in eval mode, gets no gradients, and computes in float32. A step of an
    attack looks at anchors and proposals that are drawn anew; what is reported was computed with others, the same for
    every attack.

    progress: called with the images done, of all attacks together
    ready: images of attacks that were made before, for each batch; attacks from another source must be among them

    Raises StudentError where the objective is in training mode, a goal is none of its losses, no image has a labelled
    object, or a loss is not finite.
    """
    if objective.training:
        raise StudentError("the objective is in training mode; call eval() before its student is attacked")
    if not any(len(sample.objects.boxes) for batch in batches for sample in batch.samples):
        raise StudentError("none of the images has a labelled object, and so nothing can break; take more of them")
    samples = [sample for batch in batches for sample in batch.samples]
    results: list[AttackResult] = []
    for attack in attacks:
        made = (ready or {}).get(attack)
        results.append(_result(objective, batches, attack, strength, len(results) * len(samples), progress, made))
    return results


def attacked_images(
    objective: DetectionObjective, clean: AttackBatch, attack: Attack, strength: AttackStrength
) -> Tensor:
    """Return the images float32 [B, 3, H, W] within 0 … 1 after an attack; of noise, each value moves by epsilon.

    Raises StudentError where the goal is no loss, or the attack is from another source.
    """
    if attack.source is not None:
        raise StudentError(f"attack {attack}: expected the images that were made from {attack.source}")
    device = next(objective.student.parameters()).device
    images = torch.stack([sample.image for sample in clean.samples]).to(device).float() / 255
    drawn = Chance(strength.seed, 0, clean.places).generators("attack")
    start = 2 * torch.stack([torch.rand(images.shape[1:], generator=one) for one in drawn]).to(device) - 1
    epsilon = attack.epsilon / 255
    if attack.goal == CLEAN:
        return images
    if attack.goal == NOISE:
        # An attack ends in a corner of what it may reach, too.
        return (images + epsilon * start.sign()).clamp(0.0, 1.0)

    def loss(attacked: Tensor, step: int) -> Tensor:
        losses = losses_of(objective, clean, attacked, Chance(strength.seed, step, clean.places))
        if attack.goal not in losses:
            raise StudentError(f"attack on {attack.goal}: no such loss; there are: {', '.join(losses)}")
        return losses[attack.goal]

    return projected_gradient(images, loss, start, epsilon, strength.steps if attack.steps is None else attack.steps)


def losses_of(objective: DetectionObjective, clean: AttackBatch, images: Tensor, chance: Chance) -> dict[str, Tensor]:
    """Return each loss of images in the place of the clean ones, and SUM, as weighted at the end of the training.

    Raises StudentError, naming the images, where one is not finite.
    """
    device = images.device
    batch = DetectionBatch(
        images=images,
        labels=[sample.objects for sample in clean.samples],
        targets={name: target.to(device) for name, target in clean.targets.items()},
        generators=chance.generators("attack/losses"),
        chance=chance,
    )
    losses = objective(batch, 1.0)
    values = {name: loss.value for name, loss in losses.items()}
    values[SUM] = torch.stack([loss.weight * loss.value for loss in losses.values()]).sum()
    for name, value in values.items():
        if not bool(value.isfinite()):
            about = ", ".join(str(sample.key) for sample in clean.samples)
            raise StudentError(f"{about}: the loss {name} is not finite: check the labels, or train the student again")
    return values


def _result(
    objective: DetectionObjective,
    batches: Sequence[AttackBatch],
    attack: Attack,
    strength: AttackStrength,
    done: int,
    progress: Callable[[int], None],
    made: Sequence[Tensor] | None,
) -> AttackResult:
    """Return what one attack does, whose images may be there already; so many images were done before it."""
    totals: dict[str, float] = defaultdict(float)
    depth_errors: list[Tensor] = []
    examples: list[Example] = []
    shown = most_labelled(sample for batch in batches for sample in batch.samples)

    def attacked() -> Iterator[list[Sample]]:
        for number, clean in enumerate(batches):
            images = attacked_images(objective, clean, attack, strength) if made is None else made[number]
            # The same draws for every attack, and those of no step of one.
            losses = losses_of(objective, clean, images, Chance(strength.seed, strength.steps, clean.places))
            for name, value in losses.items():
                totals[name] += len(clean.samples) * float(value)
            depth_errors.append(_depth_errors(objective.student, images, clean.samples))
            yield [replace(one, image=image) for one, image in zip(clean.samples, images.cpu(), strict=True)]

    def keep(sample: Sample, found: Detections) -> None:
        if sample.key in shown:
            examples.append(Example(sample, found, {}, {}))

    result = evaluate_student(
        objective.student, attacked(), None, on_sample=keep, progress=lambda count: progress(done + count)
    )
    metrics = {name: value for name, value in result.metrics.items() if name != "images_per_second"}
    if len(errors := torch.cat(depth_errors)):
        metrics[DEPTH_OF_LABELS] = float(errors.double().mean())
    metrics |= {f"loss/{name}": total / result.samples for name, total in totals.items()}
    objects = sum(len(sample.objects.boxes) for clean in batches for sample in clean.samples)
    return AttackResult(attack=attack, images=result.samples, objects=objects, metrics=metrics, examples=examples)


@torch.no_grad()
def _depth_errors(student: Student, images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Return |p - t| / t float32 [K] of the depths predicted for the K labelled boxes of known depth."""
    known = [sample.objects.depth_m <= student.config.max_depth_m for sample in samples]
    boxes, classes, depth_m, place = (
        torch.cat(parts).to(images.device)
        for parts in zip(
            *(
                (
                    sample.objects.boxes[chosen],
                    sample.objects.classes[chosen],
                    sample.objects.depth_m[chosen],
                    torch.full((int(chosen.sum()), 1), float(number)),
                )
                for number, (sample, chosen) in enumerate(zip(samples, known, strict=True))
            ),
            strict=True,
        )
    )
    if not len(boxes):
        return torch.zeros(0)
    levels, size = student.features(images).pyramid, (images.shape[-2], images.shape[-1])
    predicted = student.heads.depths_m(levels, torch.cat([place, boxes], 1), classes, size)
    return ((predicted - depth_m).abs() / depth_m).cpu()
