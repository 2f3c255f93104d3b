"""How much of the proposals' objectness each branch accounts for (integrated gradients, Sundararajan et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from datalake.sample import Sample
from student.config import StudentError
from student.detections import CLASS_NAMES
from student.detector import Student
from student.evaluation.branches import branch_features, recorded_trunk

# Points of the path, in the middle of as many pieces of it.
_POINTS = 32
# All classes together.
EVERY_CLASS = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Of the objectness of the anchors that overlap labelled objects best, what the branches account for, in logits.

    class_name: of the objects, or EVERY_CLASS
    objects: how many there are
    before: the mean objectness where every branch passes on its mean over images; after: as the student is
    branches: by branch, the mean over objects of the integrated gradient; in theory they add up to after - before
    """

    class_name: str
    objects: int
    before: float
    after: float
    branches: dict[str, float]

    @property
    def incomplete(self) -> float:
        """By how much the branches' parts miss what they must add up to, as a share of that."""
        change = self.after - self.before
        return abs(sum(self.branches.values()) - change) / max(abs(change), 1e-12)


def attribute_branches(
    student: Student,
    batches: Sequence[Sequence[Sample]],
    progress: Callable[[int], None] = lambda _images: None,
) -> list[Attribution]:
    """Return what the branches of a student, in eval mode, account for, by class and of all.

    The path leads all branches at once from their means over all images, cell by cell, to what they pass on; what joins
    the coarser levels past them stays as it is.

    progress: called with the images done

    Raises StudentError where no image has a labelled object.
    """
    own = branch_features(student, batches)
    means = {name: values.mean(0, keepdim=True) for name, values in own.items()}
    totals = {number: dict.fromkeys((*own, "before", "after"), 0.0) for number in range(len(CLASS_NAMES))}
    counts = dict.fromkeys(totals, 0)
    done = 0
    for batch in batches:
        parts = {name: values[done : done + len(batch)] for name, values in own.items()}
        for number, sums in _of_batch(student, batch, parts, means).items():
            counts[number] += sum(int((sample.objects.classes == number).sum()) for sample in batch)
            for name, value in sums.items():
                totals[number][name] += value
        done += len(batch)
        progress(done)
    if not any(counts.values()):
        raise StudentError("none of the images has a labelled object, whose objectness could be explained; take more")
    # Number 0, the background, is no object's: it stands for all.
    counts[0] = sum(counts.values())
    totals[0] = {name: sum(sums[name] for sums in totals.values()) for name in totals[0]}
    return [
        Attribution(
            class_name=CLASS_NAMES[number] if number else EVERY_CLASS,
            objects=count,
            before=totals[number]["before"] / count,
            after=totals[number]["after"] / count,
            branches={name: totals[number][name] / count for name in own},
        )
        for number, count in counts.items()
        if count
    ]


def _of_batch(
    student: Student, batch: Sequence[Sample], own: Mapping[str, Tensor], means: Mapping[str, Tensor]
) -> dict[int, dict[str, float]]:
    """Return by class the sums over its objects of each branch's part, and of the objectness before and after."""
    images = torch.stack([sample.image for sample in batch]).to(next(student.parameters()).device)
    size = (images.shape[-2], images.shape[-1])
    with torch.no_grad(), recorded_trunk(student) as trunk:
        levels = student.features(images).pyramid
    image, anchor, classes = _anchors_of(student, batch, levels, size)
    if not len(classes):
        return {}
    change = {name: own[name] - means[name] for name in own}

    def objectness(at: float) -> tuple[list[Tensor], Tensor]:
        parts = [(means[name] + at * change[name]).requires_grad_() for name in own]
        scores, _ = student.rpn(student.backbone.pyramid(parts, trunk[0].coarse))
        return parts, scores[image, anchor]

    present = sorted(set(classes.tolist()))
    sums = {number: dict.fromkeys((*own, "before", "after"), 0.0) for number in present}
    with torch.enable_grad():
        for point in range(_POINTS):
            parts, scores = objectness((point + 0.5) / _POINTS)
            for number in present:
                gradients = torch.autograd.grad(scores[classes == number].sum(), parts, retain_graph=True)
                for (name, step), gradient in zip(change.items(), gradients, strict=True):
                    sums[number][name] += float((step * gradient).double().sum()) / _POINTS
    with torch.no_grad():
        for name, at in (("before", 0.0), ("after", 1.0)):
            _, scores = objectness(at)
            for number in present:
                sums[number][name] = float(scores[classes == number].double().sum())
    return sums


def _anchors_of(
    student: Student, batch: Sequence[Sample], levels: Sequence[Tensor], size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each labelled object its image, the anchor that overlaps it best, and its class, int64 [M] each."""
    anchors = student.rpn.anchors(levels, size)
    image, anchor, classes = [], [], []
    for number, sample in enumerate(batch):
        if len(sample.objects.boxes):
            best = box_iou(anchors, sample.objects.boxes.to(anchors.device)).argmax(0)
            image.append(torch.full_like(best, number))
            anchor.append(best)
            classes.append(sample.objects.classes.to(anchors.device))
    nothing = torch.zeros(0, dtype=torch.int64, device=anchors.device)
    return torch.cat([nothing, *image]), torch.cat([nothing, *anchor]), torch.cat([nothing, *classes])
