"""What a student loses without what one of its branches says (ClassroomNet, section 4.2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from datalake.sample import Objects, Sample, SampleKey
from student.backbone import FREE
from student.config import StudentError
from student.detections import CLASS_NAMES, Detections
from student.detector import Student
from student.evaluation.depth import DepthScores
from student.evaluation.run import Example, evaluate_student, most_labelled
from student.trunk import TrunkFeatures

# What stands in the place of a branch's features: their mean over all images, cell by cell, or those of another image.
Replacement = Literal["mean", "other image"]
REPLACEMENTS: tuple[Replacement, ...] = get_args(Replacement)
# All branches at once: what is left then has passed them by.
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ablation:
    """How good the student is without one of its branches.

    branch: its teacher's name, FREE, or ALL; None: the student as it is
    images, objects: how many there are, labelled ones of the latter
    metrics: all of an evaluation but its pace, and `depth/AbsRel/<class>`
    examples: the images with the most labels, with what the student finds in them
    """

    branch: str | None
    replacement: Replacement | None
    images: int
    objects: int
    metrics: dict[str, float]
    examples: list[Example]

    def __str__(self) -> str:
        return "as it is" if self.branch is None else f"{self.branch}: {self.replacement}"


def ablate_branches(
    student: Student,
    batches: Sequence[Sequence[Sample]],
    progress: Callable[[int], None] = lambda _images: None,
    kinds: Mapping[SampleKey, str] | None = None,
) -> list[Ablation]:
    """Return how good the student, in eval mode, is as it is, and with the features of each branch replaced.

    Only what a branch passes on to the fusion is replaced, its prediction of the teacher's target is not.

    progress: called with the images done, of all ablations together
    kinds: of samples, such as Night, of each of which there are metrics too

    Raises StudentError for fewer than two images, or where none has a labelled object.
    """
    samples = [sample for batch in batches for sample in batch]
    objects = sum(len(sample.objects.boxes) for sample in samples)
    if len(samples) < 2 or not objects:
        raise StudentError("expected two images or more, and a labelled object in one of them; take more of them")
    own = branch_features(student, batches)
    cases: list[tuple[str | None, Replacement | None]] = [(None, None)]
    cases += [(branch, replacement) for branch in (*own, ALL) for replacement in REPLACEMENTS]
    found = []
    for number, (branch, replacement) in enumerate(cases):
        # Made one at a time: each may be as large as the features of all images.
        with substituted(student, _replacements(own, branch, replacement)):
            metrics, examples = _evaluated(student, batches, number * len(samples), progress, kinds)
        counts = {"images": len(samples), "objects": objects}
        found.append(Ablation(branch=branch, replacement=replacement, **counts, metrics=metrics, examples=examples))
    return found


@torch.no_grad()
def branch_features(student: Student, batches: Sequence[Sequence[Sample]]) -> dict[str, Tensor]:
    """Return what each branch passes on to the fusion, float32 [N, branch_width, h, w] of all N images."""
    device = next(student.parameters()).device
    with recorded(student) as parts:
        for batch in batches:
            student.features(torch.stack([sample.image for sample in batch]).to(device))
    return {name: torch.cat(values) for name, values in parts.items()}


@contextmanager
def recorded(student: Student) -> Iterator[dict[str, list[Tensor]]]:
    """Have lists grow, within the block, by what each branch passes on to the fusion: a tensor for each batch."""
    parts: dict[str, list[Tensor]] = {name: [] for name in _branches(student)}

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _inputs, output: parts[name].append(_passed(output))

    with ExitStack() as stack:
        for name, module in _branches(student).items():
            stack.callback(module.register_forward_hook(record(name)).remove)
        yield parts


@contextmanager
def recorded_trunk(student: Student) -> Iterator[list[TrunkFeatures]]:
    """Have a list grow, within the block, by what the trunk makes of each batch."""
    seen: list[TrunkFeatures] = []
    hook = student.backbone.trunk.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def substituted(student: Student, parts: Mapping[str, Tensor]) -> Iterator[None]:
    """Have branches pass on given features in the place of their own, within the block.

    parts: by branch, [N, branch_width, h, w], of the N images in the order in which the student is going to see them
    """
    places: dict[str, int] = defaultdict(int)

    def replace_with(name: str, values: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            count = len(_passed(output))
            rows = values[places[name] : places[name] + count]
            places[name] += count
            return rows if isinstance(output, Tensor) else (output[0], rows)

        return hook

    modules = _branches(student)
    with ExitStack() as stack:
        for name, values in parts.items():
            stack.callback(modules[name].register_forward_hook(replace_with(name, values)).remove)
        yield


def _branches(student: Student) -> dict[str, nn.Module]:
    # In the order of the fusion's columns.
    return {FREE: student.backbone.free, **student.backbone.branches}


def _passed(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Return what of a branch's output goes to the fusion."""
    return output if isinstance(output, Tensor) else output[1]


def _replacements(own: Mapping[str, Tensor], branch: str | None, replacement: Replacement | None) -> dict[str, Tensor]:
    """Return what stands in the place of the features of one branch, or of all of them."""
    if branch is None or replacement is None:
        return {}
    return {name: _replaced(values, replacement) for name, values in own.items() if branch in (name, ALL)}


def _replaced(values: Tensor, replacement: Replacement) -> Tensor:
    if replacement == "mean":
        return values.mean(0, keepdim=True).expand_as(values)
    # Neighbours may be of one segment.
    return values.roll(len(values) // 2, 0)


def _evaluated(
    student: Student,
    batches: Sequence[Sequence[Sample]],
    done: int,
    progress: Callable[[int], None],
    kinds: Mapping[SampleKey, str] | None,
) -> tuple[dict[str, float], list[Example]]:
    """Return metrics and examples of the student as it is now; so many images were done before."""
    shown = most_labelled(sample for batch in batches for sample in batch)
    examples: list[Example] = []
    by_class = {number: DepthScores(student.config.max_depth_m) for number in range(1, len(CLASS_NAMES))}

    def add(sample: Sample, found: Detections) -> None:
        if sample.key in shown:
            examples.append(Example(sample, found, {}, {}))
        for number, scores in by_class.items():
            scores.add(*_of_class(number, found, sample.objects))

    result = evaluate_student(
        student, batches, None, kinds=kinds, on_sample=add, progress=lambda count: progress(done + count)
    )
    metrics = {name: value for name, value in result.metrics.items() if name != "images_per_second"}
    for number, scores in by_class.items():
        of_class = scores.metrics()
        if "depth/AbsRel" in of_class:
            metrics[f"depth/AbsRel/{CLASS_NAMES[number]}"] = of_class["depth/AbsRel"]
    return metrics, examples


def _of_class(number: int, found: Detections, objects: Objects) -> tuple[Detections, Objects]:
    """Return the detections and objects of one class: only these are matched with each other."""
    kept, there = found.classes == number, objects.classes == number
    return (
        Detections(found.boxes[kept], found.classes[kept], found.scores[kept], found.depth_m[kept]),
        Objects(objects.boxes[there], objects.classes[there], objects.depth_m[there]),
    )
