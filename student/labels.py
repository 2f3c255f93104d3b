"""The labels of a batch as the losses use them: on the device, padded, in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datalake.sample import Objects
from student.config import StudentError
from student.detections import CLASS_NAMES
from student.transfer import host_buffer


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The objects of B images, at most M of each, and at least one place for them.

    boxes: float32 [B, M, 4], x0, y0, x1, y1 in pixels, with an area; 0 where there is no object
    classes: int64 [B, M], index into CLASS_NAMES; 0 where there is no object
    depth_m: float32 [B, M], NaN where it is not known or there is no object
    counts: how many objects each image has; they come first
    finite: whether all boxes were finite; those that are not are left out, and a loss of the others means nothing
    weight: float32 [B, M], how much each object counts in the losses, 0 where there is none; None: all the same
    ignored: float32 [B, R, 4], boxes that are neither an object nor background, 0 where there is none; None: none
    """

    boxes: Tensor
    classes: Tensor
    depth_m: Tensor
    counts: tuple[int, ...]
    finite: bool
    weight: Tensor | None = None
    ignored: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """Bool [B, M], where there is an object."""
        return self.classes > 0


def labels_on(device: torch.device, objects: Sequence[Objects]) -> Labels:
    """Return the labels of images whose objects are on the CPU. Boxes without an area are left out.

    Raises StudentError for a class that is not one: on a GPU it would end the process instead.
    """
    image = torch.arange(len(objects)).repeat_interleave(torch.tensor([len(one.boxes) for one in objects]))
    boxes = torch.cat([one.boxes for one in objects])
    classes = torch.cat([one.classes for one in objects])
    depth_m = torch.cat([one.depth_m for one in objects])
    if bool((wrong := (classes < 1) | (classes >= len(CLASS_NAMES))).any()):
        raise StudentError(
            f"labels of image {int(image[wrong][0])} of the batch: expected classes 1 … {len(CLASS_NAMES) - 1}, got:"
            f" {int(classes[wrong][0])}"
        )
    finite = bool(boxes.isfinite().all())
    # Scaled down, a box may be as thin as rounding: the logarithm of its side would be infinite.
    usable = (boxes[:, 2:] > boxes[:, :2]).all(1)
    image, boxes, classes, depth_m = image[usable], boxes[usable], classes[usable], depth_m[usable]
    counts = image.bincount(minlength=len(objects))
    place = torch.arange(len(image)) - (counts.cumsum(0) - counts)[image]
    packed = host_buffer((len(objects), max(1, int(counts.max())), 6), torch.float32, device).zero_()
    packed[..., 5] = torch.nan
    packed[image, place] = torch.cat([boxes, classes[:, None].float(), depth_m[:, None]], 1)
    there = packed.to(device, non_blocking=True)
    weight = None
    if any(one.weight is not None for one in objects):
        weights = torch.cat(
            [one.depth_m.new_ones(len(one.boxes)) if one.weight is None else one.weight for one in objects]
        )
        padded = host_buffer(packed.shape[:2], torch.float32, device).zero_()
        padded[image, place] = weights[usable]
        weight = padded.to(device, non_blocking=True)
    return Labels(
        there[..., :4],
        there[..., 4].long(),
        there[..., 5],
        tuple(counts.tolist()),
        finite,
        weight,
        _ignored_on(device, objects),
    )


def _ignored_on(device: torch.device, objects: Sequence[Objects]) -> Tensor | None:
    """Return float32 [B, R, 4], the images' ignored boxes; None where there is none in any."""
    most = max(0 if one.ignored is None else len(one.ignored) for one in objects)
    if not most:
        return None
    padded = host_buffer((len(objects), most, 4), torch.float32, device).zero_()
    for row, one in zip(padded, objects, strict=True):
        if one.ignored is not None:
            row[: len(one.ignored)] = one.ignored
    return padded.to(device, non_blocking=True)
