"""What distillation methods do, as images: FGFI's masks, ReviewKD's gates, LGD's maps, and scores of both detectors.

Images are drawn of a few frames of an evaluation, with the weights that the run has.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from datalake.sample import Sample
from student.detector import Student
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.fgfi import imitation_mask
from student.distillation.lgd import LGD, normed
from student.distillation.reviewkd import ReviewKD
from student.distillation.trained import TrainedMethods
from student.evaluation.run import Example
from student.labels import labels_on
from student.report.charts import class_scores
from student.report.colors import SERIES, rgb
from student.report.evaluation import where
from student.report.images import ImageArray, beside, colors_of_features
from student.report.page import Page

# Shares of the best overlap from which on cells are shown, and an overlap that is the same for all objects.
PSIS, CONSTANT_IOU = (0.2, 0.5, 0.8), 0.5
_PANEL_PX = 256
_DARKENED, _COLORED = 0.4, 0.6
_GATE_COLORS = "viridis"


def show_methods(page: Page, student: Student, methods: TrainedMethods, examples: Sequence[Example]) -> None:
    """Add to a page what the methods of the run do in these frames; nothing where there is nothing to be seen.

    student: in eval mode; methods and teachers are moved to its device
    """
    if not examples or not (methods.fgfi or methods.lgd or methods.reviewkd or methods.detectors):
        return
    device = next(student.parameters()).device
    page.heading("What the distillation methods do")
    if methods.fgfi:
        strides = ", ".join(f"{student.config.stride << n}" for n in range(student.config.levels))
        page.text(
            "FGFI compares features in the cells that are colored, by the level of the pyramid: strides"
            f" {strides} are blue, vermilion, green, pink. psi: the least overlap of an anchor, as a share of the best"
            " that any anchor has with the object; beside it a least overlap that is the same for all objects."
        )
        for example in examples:
            page.image(fgfi_panels(student, example.sample), f"FGFI, {where(example)}")
    if methods.reviewkd is not None:
        reviewkd = methods.reviewkd.to(device)
        page.text(
            "ReviewKD adds each level of the student's pyramid and the deeper ones as these two gates say: yellow is 1,"
            " dark blue 0."
        )
        for name in reviewkd.fusions:
            for example in examples:
                page.image(gate_panels(student, reviewkd, name, example.sample), f"ReviewKD, {name}, {where(example)}")
    if methods.lgd is not None:
        lgd = methods.lgd.to(device)
        page.text(
            "LGD's instructive maps, made of the labels, and the student's features after the adapter, each channel"
            " normed as the loss has it: equal colors are equal features."
        )
        for example in examples:
            if len(example.sample.objects.boxes):
                page.image(instructive_panels(student, lgd, example.sample), f"LGD, {where(example)}")
    for name, teacher in methods.detectors.items():
        teacher.move(lambda values: values.to(device))
        own, theirs = scores_of(student, teacher, [example.sample for example in examples])
        page.image(
            class_scores(own.numpy(), theirs.numpy(), name),
            f"Scores that {name} and the student give to {len(own):,} of the student's proposals in the frames above.",
        )


@torch.no_grad()
def fgfi_panels(student: Student, sample: Sample) -> ImageArray:
    """Return an image for each of PSIS and for CONSTANT_IOU, with the cells in which FGFI compares features."""
    levels, image_size = _pyramid(student, sample)
    shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
    boxes = labels_on(levels[0].device, [sample.objects]).boxes
    anchors = student.rpn.anchors(levels, image_size)
    cells = sum(height * width for height, width in shapes)
    panels = []
    for psi in PSIS:
        mask = imitation_mask(anchors, boxes, psi, cells)[0]
        panels.append((f"psi {psi:g}: {int(mask.sum())} cells", masked_image(sample.image, mask.cpu(), shapes)))
    mask = imitation_mask(anchors, boxes, CONSTANT_IOU, cells, constant=True)[0]
    title = f"IoU {CONSTANT_IOU:g}: {int(mask.sum())} cells"
    return beside([*panels, (title, masked_image(sample.image, mask.cpu(), shapes))], columns=2)


def masked_image(image: Tensor, mask: Tensor, shapes: Sequence[tuple[int, int]]) -> ImageArray:
    """Return the image, darkened, with the cells of a mask in the colors of their levels, the finest on top.

    image: uint8 [3, H, W]; the result is uint8 [scale * H, scale * W, 3]
    mask: bool [cells], level after level, row after row
    shapes: height and width in cells of each level, which divide the image's
    """
    scale = max(1, _PANEL_PX // image.shape[1])
    whole = image.permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
    canvas = whole * _DARKENED
    parts = mask.split([height * width for height, width in shapes])
    for number in reversed(range(len(shapes))):
        height, width = shapes[number]
        cells = parts[number].view(height, width).numpy()
        there = cells.repeat(len(whole) // height, 0).repeat(whole.shape[1] // width, 1)[..., None]
        color = np.array(rgb(SERIES[number % len(SERIES)]))
        canvas = np.where(there, (1 - _COLORED) * whole + _COLORED * color, canvas)
    return canvas.round().astype(np.uint8)


@torch.no_grad()
def gate_panels(student: Student, method: ReviewKD, name: str, sample: Sample) -> ImageArray:
    """Return, of each level but the deepest, the gate of the level and that of the deeper ones beside the image."""
    levels, _ = _pyramid(student, sample)
    panels: list[tuple[str, ImageArray]] = []
    for number, fused in enumerate(method.fuse(name, levels)):
        if fused.gates is not None:
            stride = student.config.stride << number
            whose = (f"stride {stride}: its own", f"stride {stride}: deeper levels")
            panels.append(("the image", sample.image.permute(1, 2, 0).numpy()))
            panels += [(title, _colored(gate.cpu())) for title, gate in zip(whose, fused.gates[0], strict=True)]
    return beside(panels, columns=3)


@torch.no_grad()
def instructive_panels(student: Student, method: LGD, sample: Sample) -> ImageArray:
    """Return LGD's map of each level beside the image and the student's features; the sample has an object."""
    levels, image_size = _pyramid(student, sample)
    maps = method.maps(levels, labels_on(levels[0].device, [sample.objects]), image_size)
    panels: list[tuple[str, ImageArray]] = []
    for number, (truth, level) in enumerate(zip(maps, levels, strict=True)):
        adapted = method.adapter(level)
        scale = max(1, _PANEL_PX // truth.shape[-2])
        everywhere = torch.ones(1, *truth.shape[-2:], dtype=torch.bool)
        views = colors_of_features(normed(truth)[0].cpu(), everywhere, normed(adapted)[0].cpu(), scale=scale)
        stride = student.config.stride << number
        titles = (f"stride {stride}: of the labels", f"stride {stride}: the student's")
        panels.append(("the image", sample.image.permute(1, 2, 0).numpy()))
        panels += list(zip(titles, views, strict=True))
    return beside(panels, columns=3)


@torch.no_grad()
def scores_of(student: Student, teacher: DetectorTeacher, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Return the student's and the teacher's probabilities float32 [K, M] of the student's proposals in all frames."""
    own, theirs = [], []
    for sample in samples:
        levels, image_size = _pyramid(student, sample)
        proposals = student.propose(levels, image_size)
        predicted = student.heads.predict(levels, proposals.boxes)
        truth = teacher.predict(_image(student, sample)).predict(proposals.boxes)
        own.append(predicted.logits[proposals.valid].softmax(-1).cpu())
        theirs.append(truth.logits[proposals.valid].softmax(-1).cpu())
    return torch.cat(own), torch.cat(theirs)


def _image(student: Student, sample: Sample) -> Tensor:
    return sample.image[None].to(next(student.parameters()).device)


def _pyramid(student: Student, sample: Sample) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    """Return the student's pyramid of an image, and the image's height and width."""
    return student.features(_image(student, sample)).pyramid, (sample.image.shape[-2], sample.image.shape[-1])


def _colored(values: Tensor) -> ImageArray:
    """Return numbers float32 [h, w] within 0 … 1 as colors, each cell a square."""
    scale = max(1, _PANEL_PX // values.shape[0])
    colors: ImageArray = mpl.colormaps[_GATE_COLORS](values.double().numpy(), bytes=True)[..., :3]
    return colors.repeat(scale, 0).repeat(scale, 1)
