"""What is wrong with the student's detections, by kind of error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from datalake.sample import Objects
from student.detections import CLASS_NAMES, Detections
from student.evaluation.image import detections_on_cpu, objects_on_cpu

ERROR_KINDS = ("localization", "confusion", "background", "missed")

# What a detection is: right, or wrong in one of the first three ways.
RIGHT, LOCALIZATION, CONFUSION, BACKGROUND = range(4)

_FOUND_IOU, _NEAR_IOU = 0.5, 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What N detections in one image with M objects are.

    kinds: int64 [N] of the detections: RIGHT, LOCALIZATION, CONFUSION or BACKGROUND
    missed: bool [M], the objects that none of them is about
    """

    kinds: Tensor
    missed: Tensor


def judged(found: Detections, objects: Objects) -> Judged:
    """Return what each of the detections in an image is, the most confident first, and which objects they miss.

    A detection is, by the first of these that is true,

    - right: it overlaps an object of its class, which no detection before it has taken, by IoU 0.5 or more; it takes
      the one that it overlaps most, as COCO's evaluation does;
    - an error of localization: it overlaps an object of its class by 0.1 or more; of one that is taken already, too;
    - a confusion: it overlaps an object of another class by 0.1 or more;
    - background.

    These are the false positives of Hoiem et al. 2012, "Diagnosing Error in Object Detectors", without the distinction
    of similar classes. An object is missed where no detection has taken it, and none with an error of localization or
    a confusion overlaps it by 0.1 or more: as in TIDE (Bolya et al. 2020), errors are counted once.
    """
    overlaps = box_iou(found.boxes.double(), objects.boxes.double()).nan_to_num(0.0)
    same = found.classes[:, None] == objects.classes
    near = overlaps >= _NEAR_IOU
    kinds = torch.where((near & same).any(1), LOCALIZATION, torch.where(near.any(1), CONFUSION, BACKGROUND))
    taken = torch.zeros(len(objects.boxes), dtype=torch.bool)
    fits = same & (overlaps >= _FOUND_IOU)
    for number in fits.any(1).nonzero()[:, 0].tolist():
        free = fits[number] & ~taken
        if free.any():
            taken[overlaps[number].where(free, 0.0).argmax()] = True
            kinds[number] = RIGHT
    wrong_about = near & ((kinds == LOCALIZATION) | (kinds == CONFUSION))[:, None]
    return Judged(kinds, ~taken & ~wrong_about.any(0))


class DetectionErrors:
    """Errors by kind over the images that were added, without a threshold on scores.

    Of each class as many detections are judged (`judged`) as it has objects, the most confident of all images, as in
    Hoiem et al. 2012: a detector without errors would find each object with one of them.
    """

    def __init__(self) -> None:
        self._images: list[tuple[Detections, Objects]] = []

    def add(self, found: Detections, objects: Objects) -> None:
        """Count one image; raises ValueError where it is not what Detections and Objects say."""
        self._images.append((detections_on_cpu(found), objects_on_cpu(objects)))

    def metrics(self) -> dict[str, float]:
        """Return `errors/<kind>` and `errors/<kind>/<class>`; {} without objects.

        Of a class: how many of its detections are wrong in this way, or how many of its objects are missed, divided by
        the number of its objects. Without a class: the mean over the classes that have an object.
        """
        if not self._images:
            return {}
        objects = _counts(torch.cat([there.classes for _, there in self._images]))
        errors = torch.zeros(len(ERROR_KINDS), len(CLASS_NAMES), dtype=torch.int64)
        for (found, there), chosen in zip(self._images, self._most_confident(objects.tolist()), strict=True):
            some = Detections(found.boxes[chosen], found.classes[chosen], found.scores[chosen], found.depth_m[chosen])
            judgement = judged(some, there)
            for row, wrong in enumerate((LOCALIZATION, CONFUSION, BACKGROUND)):
                errors[row] += _counts(some.classes[judgement.kinds == wrong])
            errors[-1] += _counts(there.classes[judgement.missed])
        known = objects.nonzero()[:, 0]
        metrics = {}
        for kind, shares in zip(ERROR_KINDS, errors[:, known].double() / objects[known], strict=True):
            if len(known):
                metrics[f"errors/{kind}"] = float(shares.mean())
            for number, share in zip(known.tolist(), shares.tolist(), strict=True):
                metrics[f"errors/{kind}/{CLASS_NAMES[number]}"] = share
        return metrics

    def _most_confident(self, counts: Sequence[int]) -> list[Tensor]:
        """Return of each image which of its detections are judged, int64 [n], the most confident first.

        counts: how many of each class, of all images
        """
        scores = torch.cat([found.scores for found, _ in self._images])
        classes = torch.cat([found.classes for found, _ in self._images])
        order = scores.argsort(descending=True, stable=True)
        chosen = torch.zeros(len(scores), dtype=torch.bool)
        for number, count in enumerate(counts):
            chosen[order[classes[order] == number][:count]] = True
        each = chosen.split([len(found.scores) for found, _ in self._images])
        return [
            (ranks := found.scores.argsort(descending=True, stable=True))[some[ranks]]
            for some, (found, _) in zip(each, self._images, strict=True)
        ]


def _counts(classes: Tensor) -> Tensor:
    return classes.bincount(minlength=len(CLASS_NAMES))
