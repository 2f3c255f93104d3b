"""Natural corruptions of images at three strengths each (after Hendrycks and Dietterich 2019, ImageNet-C)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.functional import gaussian_blur

from datalake.sample import Sample
from student.config import StudentError
from student.detections import Detections
from student.detector import Student
from student.evaluation.run import Example, evaluate_student, most_labelled
from training.generators import sample_generator

CLEAN = "clean"
# What each kind does to an image, from weak to strong. Noise, brightness, jpeg and fog's density are
# ImageNet-C's first, third and fifth strength. Its blurs would leave nothing of objects of 8 pixels: these are weaker.
STRENGTHS: dict[str, tuple[float, float, float]] = {
    # Standard deviation in pixels.
    "blur": (0.5, 1.0, 2.0),
    # Standard deviation of what is added to each value.
    "noise": (0.08, 0.18, 0.38),
    # Quality that the image is written with.
    "jpeg": (25.0, 15.0, 7.0),
    # What is added to the largest of a pixel's three values, the others in proportion.
    "brightness": (0.1, 0.3, 0.5),
    # How much of a cloudy field, 0 … 1, is added before all is scaled back to 0 … 1.
    "fog": (1.5, 2.5, 3.0),
}
# Of the fog's field, each octave weighs half of the one that is twice as coarse.
_OCTAVES, _COARSEST = 6, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Corruption:
    """What is done to an image: one of STRENGTHS at strength 1, 2 or 3, or nothing, which is CLEAN at 0."""

    kind: str
    strength: int

    def __str__(self) -> str:
        return self.kind if self.kind == CLEAN else f"{self.kind} {self.strength}"


UNCHANGED = Corruption(kind=CLEAN, strength=0)
CORRUPTIONS = (
    UNCHANGED,
    *(Corruption(kind=kind, strength=strength) for kind in STRENGTHS for strength in (1, 2, 3)),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CorruptionResult:
    """How good the student is on corrupted images.

    images, objects: how many there are, labelled ones of the latter
    metrics: all of an evaluation but its pace
    examples: the images with the most labels, corrupted, with what the student finds in them
    """

    corruption: Corruption
    images: int
    objects: int
    metrics: dict[str, float]
    examples: list[Example]


def corrupted(image: Tensor, corruption: Corruption, generator: torch.Generator) -> Tensor:
    """Return an image float32 [3, H, W] within 0 … 1 after a corruption.

    generator: on the CPU, of what is random
    """
    if corruption.kind == CLEAN:
        return image
    return _CHANGES[corruption.kind](image, STRENGTHS[corruption.kind][corruption.strength - 1], generator).clamp(0, 1)


def evaluate_corrupted(
    student: Student,
    batches: Sequence[Sequence[Sample]],
    seed: int,
    progress: Callable[[int], None] = lambda _images: None,
) -> list[CorruptionResult]:
    """Return how good the student, in eval mode, is on the images under each of CORRUPTIONS.

    An image is corrupted in the same way for every student.

    progress: called with the images done, of all corruptions together

    Raises StudentError where no image has a labelled object.
    """
    samples = [sample for batch in batches for sample in batch]
    objects = sum(len(sample.objects.boxes) for sample in samples)
    if not objects:
        raise StudentError("none of the images has a labelled object, and so nothing can break; take more of them")
    shown = most_labelled(samples)
    found = []
    for number, corruption in enumerate(CORRUPTIONS):
        examples: list[Example] = []
        done = number * len(samples)

        def keep(sample: Sample, detections: Detections, examples: list[Example] = examples) -> None:
            if sample.key in shown:
                examples.append(Example(sample, detections, {}, {}))

        result = evaluate_student(
            student,
            _corrupted_batches(batches, corruption, seed),
            None,
            on_sample=keep,
            progress=lambda count, done=done: progress(done + count),  # type: ignore[misc]
        )
        metrics = {name: value for name, value in result.metrics.items() if name != "images_per_second"}
        found.append(
            CorruptionResult(
                corruption=corruption, images=len(samples), objects=objects, metrics=metrics, examples=examples
            )
        )
    return found


def kept(found: Sequence[CorruptionResult]) -> float | None:
    """Return the share of AP50 that is left, the mean over all corruptions; None where there is no clean AP50."""
    clean = next((one.metrics.get("AP50") for one in found if one.corruption == UNCHANGED), None)
    left = [one.metrics["AP50"] for one in found if one.corruption != UNCHANGED and "AP50" in one.metrics]
    return sum(left) / len(left) / clean if clean and left else None


def _corrupted_batches(
    batches: Sequence[Sequence[Sample]], corruption: Corruption, seed: int
) -> Iterator[list[Sample]]:
    place = 0
    for batch in batches:
        changed = []
        for sample in batch:
            generator = sample_generator(seed, 0, place, f"corruption/{corruption.kind}")
            changed.append(replace(sample, image=corrupted(sample.image.float() / 255, corruption, generator)))
            place += 1
        yield changed


def _blur(image: Tensor, deviation_px: float, _generator: torch.Generator) -> Tensor:
    # Three deviations to each side.
    side = 2 * max(1, round(3 * deviation_px)) + 1
    blurred: Tensor = gaussian_blur(image, [side, side], [deviation_px, deviation_px])
    return blurred


def _noise(image: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return image + deviation * torch.randn(image.shape, generator=generator)


def _jpeg(image: Tensor, quality: float, _generator: torch.Generator) -> Tensor:
    return decode_jpeg(encode_jpeg((image * 255).round().byte(), round(quality))).float() / 255


def _brightness(image: Tensor, more: float, _generator: torch.Generator) -> Tensor:
    value = image.amax(0, keepdim=True)
    brighter = (value + more).clamp(max=1)
    # Black becomes gray: it has no color to keep.
    return torch.where(value > 0, image * (brighter / value.clamp(min=1e-6)), brighter)


def _fog(image: Tensor, density: float, generator: torch.Generator) -> Tensor:
    height, width = image.shape[1:]
    field = torch.zeros(1, 1, height, width)
    for octave in range(_OCTAVES):
        rows, columns = (min(side, _COARSEST << octave) for side in (height, width))
        drawn = torch.rand(1, 1, rows, columns, generator=generator)
        field += 0.5**octave * interpolate(drawn, (height, width), mode="bilinear", align_corners=False)
    field = (field - field.amin()) / (field.amax() - field.amin()).clamp(min=1e-6)
    most = image.amax()
    return (image + density * field[0]) * most / (most + density)


_CHANGES: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "brightness": _brightness,
    "fog": _fog,
}
