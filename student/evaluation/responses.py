"""How the proposal network's first convolution responds to each branch (ClassroomNet, section 4.2).

Between a branch and that convolution lie the fusion, its norm and a ReLU. What is looked at is the linear path: the
norm's statistics are held as they are in each image, and the ReLU is left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from datalake.sample import Sample
from student.backbone import FREE
from student.detections import CLASS_NAMES
from student.detector import Student
from student.evaluation.branches import recorded
from student.evaluation.image import classes_of_cells
from student.evaluation.run import most_labelled
from student.layers import StandardizedConv
from teachers.classes import CAMERA_CLASSES, CAMERA_TO_MASK, IGNORED, MASK_CLASSES

_SHOWN = 6
# The class of CLASS_NAMES that each official panoptic class is of; -1 where that is not known.
_OF_PANOPTIC = torch.tensor(
    [
        -1 if mask == IGNORED else CLASS_NAMES.index(name if name == "SIGN" else MASK_CLASSES[mask])
        for name, mask in zip(CAMERA_CLASSES, CAMERA_TO_MASK, strict=True)
    ]
)


@dataclass(frozen=True, slots=True)
class Contrast:
    """How much more is seen where objects of a class are than where none is.

    Where an image has panoptic labels these say so, of the middle of each cell; elsewhere the labelled boxes.

    inside: the mean inside, the mean over images
    ratio: of the means inside and outside, the mean over images
    t: of the differences of these means, over images; NaN where there are fewer than two
    images: how many have both
    """

    inside: float
    ratio: float
    t: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Response:
    """The response to one branch: norms over the convolution's channels, in each cell of the finest level.

    share: of the sum over branches, the mean over all cells
    contrasts: by class
    maps: float32 [h, w] of the images in `shown_samples`, in their order
    """

    branch: str
    share: float
    contrasts: dict[str, Contrast]
    maps: list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PastBranches:
    """The response on a coarser level to the trunk's map that joins it past the branches.

    stride: pixels to a cell of the level
    share: of the sum with the response to what comes from the branches, the mean over all cells
    contrasts: by class
    """

    stride: int
    share: float
    contrasts: dict[str, Contrast]


def shown_samples(batches: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Return the samples whose response maps are kept: the six with the most labels, in their order."""
    samples = [sample for batch in batches for sample in batch]
    chosen = most_labelled(samples, _SHOWN)
    return [sample for sample in samples if sample.key in chosen]


def effective_kernels(student: Student, fused: Tensor) -> dict[str, Tensor]:
    """Return the kernels float32 [B, O, branch_width, 3, 3] from each branch to the convolution, of each image.

    fused: what the fusion's convolution makes of the branches, float32 [B, C, h, w], before its norm
    """
    fuse, norm = student.backbone.fuse[0], student.backbone.fuse[1]
    assert isinstance(fuse, nn.Conv2d)
    weight = fuse.standardized() if isinstance(fuse, StandardizedConv) else fuse.weight
    scaled = _scales(norm, fused)[:, :, None] * weight[None, :, :, 0, 0]
    whole = torch.einsum("ocyx,bci->boiyx", _first_kernel(student), scaled)
    names = [FREE, *student.backbone.branches]
    return dict(zip(names, whole.split(student.config.branch_width, 2), strict=True))


@torch.no_grad()
def response_maps(student: Student, images: Tensor) -> dict[str, Tensor]:
    """Return the norm of the response to each branch, float32 [B, h, w], for images [B, 3, H, W]."""
    fused: list[Tensor] = []
    hook = student.backbone.fuse[0].register_forward_hook(lambda _module, _inputs, output: fused.append(output))
    try:
        with recorded(student) as parts:
            student.features(images)
    finally:
        hook.remove()
    kernels = effective_kernels(student, fused[0])
    return {
        name: torch.stack(
            [conv2d(part, kernel, padding=1).norm(dim=0) for part, kernel in zip(of[0], kernels[name], strict=True)]
        )
        for name, of in parts.items()
    }


def branch_responses(student: Student, batches: Sequence[Sequence[Sample]]) -> list[Response]:
    """Return the response to each branch of the student, in eval mode, over all images."""
    device = next(student.parameters()).device
    samples = [sample for batch in batches for sample in batch]
    of_batches = [
        response_maps(student, torch.stack([sample.image for sample in batch]).to(device)) for batch in batches
    ]
    maps = {name: torch.cat([one[name].cpu() for one in of_batches]) for name in of_batches[0]}
    total = sum(float(each.double().sum()) for each in maps.values())
    shown = {sample.key for sample in shown_samples(batches)}
    return [
        Response(
            branch=name,
            share=float(each.double().sum()) / total if total else 0.0,
            contrasts=contrasts(each, samples, student.config.stride),
            maps=[one for one, sample in zip(each, samples, strict=True) if sample.key in shown],
        )
        for name, each in maps.items()
    ]


@torch.no_grad()
def past_branches(student: Student, batches: Sequence[Sequence[Sample]]) -> list[PastBranches]:
    """Return the response to what joins each coarser level past the branches; [] where the trunk has no such maps.

    Nothing but a sum lies between, so that this path is linear as it is.
    """
    device, backbone = next(student.parameters()).device, student.backbone
    samples = [sample for batch in batches for sample in batch]
    kernel = _first_kernel(student)
    maps: dict[tuple[int, str], list[Tensor]] = {}

    def record(level: int, way: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            response = conv2d(output.float(), kernel, padding=1).norm(dim=1).cpu()
            maps.setdefault((level, way), []).append(response)

        return hook

    with ExitStack() as stack:
        for level, lateral in enumerate(backbone.lateral, start=1):
            stack.callback(lateral.register_forward_hook(record(level, "past")).remove)
            stack.callback(backbone.downsample[level - 1].register_forward_hook(record(level, "through")).remove)
        for batch in batches:
            student.features(torch.stack([sample.image for sample in batch]).to(device))
    found = []
    for level in range(1, len(backbone.lateral) + 1):
        past, through = (torch.cat(maps[level, way]) for way in ("past", "through"))
        stride = student.config.stride << level
        total = float(past.double().sum() + through.double().sum())
        found.append(
            PastBranches(
                stride=stride,
                share=float(past.double().sum()) / total if total else 0.0,
                contrasts=contrasts(past, samples, stride),
            )
        )
    return found


def contrasts(maps: Tensor, samples: Sequence[Sample], stride: int) -> dict[str, Contrast]:
    """Return how much stronger maps float32 [B, h, w] are where objects of each class are that there is.

    stride: side of a cell in pixels; a cell is where its middle is
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for one, sample in zip(maps.double(), samples, strict=True):
        there = _classes_there(sample, one.shape[0], one.shape[1], stride)
        background = there[0]
        for number, name in enumerate(CLASS_NAMES):
            if number and bool(there[number].any()) and bool(background.any()):
                pairs.setdefault(name, []).append((float(one[there[number]].mean()), float(one[background].mean())))
    return {name: _contrast(pairs[name]) for name in CLASS_NAMES if name in pairs}


def _classes_there(sample: Sample, height: int, width: int, stride: int) -> Tensor:
    """Return bool [M, h, w], which cells show each of CLASS_NAMES; the first is the background."""
    numbers = torch.arange(len(CLASS_NAMES))
    if sample.panoptic is not None:
        return _OF_PANOPTIC[classes_of_cells(sample.panoptic, height, width)] == numbers[:, None, None]
    inside = _inside(sample.objects.boxes, height, width, stride)
    there = torch.stack([inside[sample.objects.classes == number].any(0) for number in numbers])
    there[0] = ~inside.any(0)
    return there


def _contrast(pairs: Sequence[tuple[float, float]]) -> Contrast:
    differences = [inside - outside for inside, outside in pairs]
    spread = statistics.stdev(differences) if len(pairs) > 1 else 0.0
    ratio = statistics.fmean(inside / max(outside, 1e-12) for inside, outside in pairs)
    t = statistics.fmean(differences) / (spread / math.sqrt(len(pairs))) if spread else math.nan
    return Contrast(statistics.fmean(inside for inside, _ in pairs), ratio, t, len(pairs))


def _inside(boxes: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Return bool [M, h, w], the cells whose middle is in each of the boxes float32 [M, 4]."""
    x, y = (stride * (torch.arange(count) + 0.5) for count in (width, height))
    x0, y0, x1, y1 = (edge[:, None] for edge in boxes.unbind(1))
    columns, rows = (x >= x0) & (x < x1), (y >= y0) & (y < y1)
    return rows[:, :, None] & columns[:, None, :]


def _first_kernel(student: Student) -> Tensor:
    return next(layer for layer in student.rpn.head.conv.modules() if isinstance(layer, nn.Conv2d)).weight


def _scales(norm: nn.Module, values: Tensor) -> Tensor:
    """Return what a norm multiplies each channel of values [B, C, h, w] by: float32 [B, C]."""
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_var is not None
        return (norm.weight * (norm.running_var + norm.eps).rsqrt()).expand(len(values), -1)
    assert isinstance(norm, nn.GroupNorm)
    grouped = values.unflatten(1, (norm.num_groups, -1))
    deviation = (grouped.var((2, 3, 4), unbiased=False) + norm.eps).rsqrt()
    return norm.weight * deviation.repeat_interleave(grouped.shape[2], 1)
