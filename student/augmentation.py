"""Images mirrored and lit at random, with their labels and targets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datalake.sample import Objects
from teachers.target import Target


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to an image."""

    # Share of the images that are mirrored.
    mirror: float = 0.5
    # Brightness and contrast vary by a factor within 1 ± this.
    light: float = 0.2


def mirrored_objects(objects: Objects, width: int) -> Objects:
    """Return the objects of an image, `width` pixels wide, after it was mirrored."""

    def mirrored(boxes: Tensor) -> Tensor:
        x0, y0, x1, y1 = boxes.unbind(1)
        return torch.stack([width - x1, y0, width - x0, y1], 1)

    ignored = None if objects.ignored is None else mirrored(objects.ignored)
    return replace(objects, boxes=mirrored(objects.boxes), ignored=ignored)


def mirrored_target(target: Target, mirror: Tensor) -> Target:
    """Return the target of images of which those in `mirror`, bool [B], were mirrored."""

    def turn(values: Tensor) -> Tensor:
        return torch.where(mirror[:, None, None, None].to(values.device), values.flip(-1), values)

    confidence = None if target.confidence is None else turn(target.confidence)
    return replace(target, values=turn(target.values), valid=turn(target.valid), confidence=confidence)


def lit(images: Tensor, light: Tensor) -> Tensor:
    """Return images float32 within 0 … 1 [B, 3, H, W] with brightness and contrast scaled by `light` [B, 2]."""
    brightness, contrast = light.to(images.device)[:, :, None, None, None].unbind(1)
    gray = images.mean((1, 2, 3), keepdim=True)
    return (((images - gray) * contrast + gray) * brightness).clamp(0, 1)
