"""Detections, labels, targets and predictions drawn as images.

Tensors are on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from datalake.sample import Objects
from student.detections import CLASS_NAMES, Detections
from student.report.colors import CLASS_COLORS, INVALID, rgb
from student.report.labels import Box, Labels, font
from teachers.classes import MASK_CLASSES

ImageArray = NDArray[np.uint8]

_WHITE = (255, 255, 255)
_BOARD = (20, 22, 26)
_BOARD_TEXT = (225, 228, 232)
_GAP = 8
_DASH, _SPACE = 7, 5

# Distances are colored by their logarithm: most points are near, and there a metre means more.
_DEPTH_COLORS = "turbo"
_NEAREST_M, _FARTHEST_M = 3.0, 75.0
_DEPTH_TICKS_M = (5, 10, 20, 40, 75)
_DARKENED = 0.45
# Both ends of the colors are too dark for a dark image.
_BRIGHT = (0.08, 0.92)

# Of each component, what lies outside is drawn as the darkest or brightest.
_PERCENTILES = (0.02, 0.98)
_DIMMED = 0.35


def draw_detections(
    image: Tensor, found: Detections, objects: Objects | None, *, min_score: float = 0.5, scale: int = 3
) -> ImageArray:
    """Return the image with what was found, and the labelled objects as thin dashed white boxes with their depth.

    Each detection has its class's color and, where there is room, class, score and depth; a small one the depth only.

    image: uint8 [3, H, W], RGB; the result is uint8 [scale * H, scale * W, 3]
    objects: None where the truth is unknown or not to be shown
    min_score: detections below it are left out
    """
    canvas = _enlarged(image, scale)
    pen = ImageDraw.Draw(canvas)
    labels = Labels(canvas, _text_size(scale))
    shown = (found.scores >= min_score).nonzero()[:, 0].tolist()
    places = [_place(found.boxes[i], scale, canvas) for i in range(len(found.boxes))]
    names = [CLASS_NAMES[number] for number in found.classes.tolist()]
    for i in reversed(shown):  # the most confident on top
        pen.rectangle(_outline(places[i]), outline=rgb(CLASS_COLORS[names[i]]), width=max(2, round(0.9 * scale)))
    truths = [] if objects is None else [_place(box, scale, canvas) for box in objects.boxes]
    for place in truths:
        _draw_dashed(pen, _outline(place))
    for i in shown:
        score, depth = float(found.scores[i]), f"{float(found.depth_m[i]):.0f} m"
        full = f"{names[i]} {f'{score:.2f}'.removeprefix('0')} {depth}"
        wide_enough = places[i][2] - places[i][0] > 0.5 * labels.width(full)
        labels.plate(places[i], (full, depth) if wide_enough else (depth,), rgb(CLASS_COLORS[names[i]]))
    if objects is not None:
        for place, depth_m in zip(truths, objects.depth_m.tolist(), strict=True):
            if depth_m == depth_m:  # NaN where no point lies in the box
                labels.outlined(place, (f"{depth_m:.0f} m",), _WHITE)
    return np.asarray(canvas)


def draw_points(image: Tensor, uv: Tensor, depth_m: Tensor, *, scale: int = 3) -> ImageArray:
    """Return the darkened image under its lidar points, colored by their distance from the camera.

    image: uint8 [3, H, W]; uv: float [2, n] in pixels of it; depth_m: float [n]; as `datalake.sample.Lidar` has them
    """
    gray = _enlarged(image, scale).convert("L")
    dark = gray.point([round(_DARKENED * level) for level in range(256)]).convert("RGB")
    pen = ImageDraw.Draw(dark)
    order = depth_m.argsort(descending=True)  # the near ones hide the far ones
    colors = _depth_colors(depth_m[order].double().numpy())
    radius = 0.7 * scale
    for (u, v), color in zip((uv[:, order].T * scale).tolist(), colors.tolist(), strict=True):
        pen.ellipse((u - radius, v - radius, u + radius, v + radius), fill=tuple(color))
    _draw_depth_scale(dark, scale)
    return np.asarray(dark)


def colors_of_features(
    values: Tensor, valid: Tensor, prediction: Tensor, *, scale: int = 8
) -> tuple[ImageArray, ImageArray]:
    """Return a teacher's features and the student's prediction of them, equal colors meaning equal features.

    The colors are the three principal components of the teacher's valid cells. The prediction is projected on the
    same components and scaled by the same percentiles; where the target is not valid (dark gray) it is dimmed.

    values, prediction: float [D, h, w]; valid: bool [1, h, w]; the images are uint8 [scale * h, scale * w, 3]
    """
    if values.shape != prediction.shape or valid.shape != (1, *values.shape[1:]):
        raise ValueError(
            "Expected values and prediction [D, h, w] and valid [1, h, w], got:"
            f" {list(values.shape)}, {list(prediction.shape)}, {list(valid.shape)}"
        )
    height, width = values.shape[1:]
    rows, guess = (features.double().flatten(1).T for features in (values, prediction))
    predicted = valid.flatten()
    if not bool(predicted.any()):
        nothing = _enlarge_cells(_filled(height, width, INVALID), scale)
        return nothing, nothing.copy()
    mean, basis = _principal(rows[predicted])
    components = (rows[predicted] - mean) @ basis
    low, high = torch.quantile(components, torch.tensor(_PERCENTILES, dtype=torch.float64), dim=0)

    def paint(features: Tensor) -> ImageArray:
        # A component without spread is in the middle wherever it is met as it was.
        spread = torch.where(high > low, high - low, 1.0)
        position = ((features - mean) @ basis - (low + high) / 2) / spread + 0.5
        return (position.clamp(0, 1) * 255).round().byte().view(height, width, 3).numpy()

    judged, student = predicted.view(height, width, 1).numpy(), paint(guess)
    teacher = np.where(judged, paint(rows), _filled(height, width, INVALID))
    student = np.where(judged, student, (student * _DIMMED).astype(np.uint8))
    return _enlarge_cells(teacher, scale), _enlarge_cells(student, scale)


def colors_of_classes(
    classes: Tensor, valid: Tensor, *, class_names: Sequence[str] = MASK_CLASSES, scale: int = 8
) -> ImageArray:
    """Return each cell in the color of its class as in `draw_detections`, dark gray where it is not valid.

    classes: integers [h, w], numbers of `class_names`; valid: bool [h, w] or [1, h, w]
    """
    if unknown := sorted(set(class_names) - set(CLASS_COLORS)):
        raise ValueError(f"no color for class {unknown[0]!r}; there are colors for {', '.join(CLASS_COLORS)}")
    height, width = classes.shape
    predicted = valid.reshape(height, width).numpy()
    numbers = np.where(predicted, classes.numpy(), 0)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(class_names):
        raise ValueError(f"Expected classes within 0 … {len(class_names) - 1}, got: {numbers.min()} … {numbers.max()}")
    colors = np.array([rgb(CLASS_COLORS[name]) for name in class_names], np.uint8)
    cells = np.where(predicted[..., None], colors[numbers], _filled(height, width, INVALID))
    return _enlarge_cells(cells, scale)


def beside(
    panels: Sequence[tuple[str, ImageArray]], *, columns: int | None = None, legend: Sequence[str] = ()
) -> ImageArray:
    """Return images in a row under their titles, all as tall as the tallest.

    columns: how many before the next row begins; None for a single row
    legend: names of classes whose colors a line below explains
    """
    if not panels:
        raise ValueError("Expected one image or more, got: none")
    tallest = max(len(image) for _, image in panels)
    tiles = [(title, _grown(image, tallest)) for title, image in panels]
    step = columns or len(tiles)
    rows = [tiles[first : first + step] for first in range(0, len(tiles), step)]
    size = max(13, round(tallest / 30))
    line = round(1.9 * size)
    width = max(sum(tile.width + _GAP for _, tile in row) for row in rows) + _GAP
    board = Image.new("RGB", (width, (line + tallest) * len(rows) + (line if legend else _GAP)), _BOARD)
    pen = ImageDraw.Draw(board)
    for number, row in enumerate(rows):
        x, y = _GAP, number * (line + tallest)
        for title, tile in row:
            at = (x, y + line // 2)
            pen.text(at, _cut(title, tile.width, size), fill=_BOARD_TEXT, font=font(size), anchor="lm")
            board.paste(tile, (x, y + line))
            x += tile.width + _GAP
    _draw_legend(pen, legend, board.height - line // 2, size)
    return np.asarray(board)


def scale_to(width: int, image: Tensor) -> int:
    """Return the largest whole factor that keeps an image [3, H, W] within a width in pixels, at least 1."""
    return max(1, width // image.shape[-1])


def _enlarged(image: Tensor, scale: int) -> Image.Image:
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        raise ValueError(f"Expected an image uint8 [3, H, W], got: {image.dtype} {list(image.shape)}")
    whole = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    return whole.resize((whole.width * scale, whole.height * scale), Image.Resampling.BICUBIC)


def _text_size(scale: int) -> int:
    return max(10, round(4.4 * scale))


def _place(box: Tensor, scale: int, canvas: Image.Image) -> Box:
    """Return the pixels [x0, x1) x [y0, y1) of the canvas that a box covers, at least one."""
    x0, y0, x1, y1 = (round(value * scale) for value in box.tolist())
    x0, y0 = min(max(x0, 0), canvas.width - 1), min(max(y0, 0), canvas.height - 1)
    return x0, y0, max(min(x1, canvas.width), x0 + 1), max(min(y1, canvas.height), y0 + 1)


def _outline(place: Box) -> Box:
    # The pen counts the last pixel in.
    return place[0], place[1], place[2] - 1, place[3] - 1


def _draw_dashed(pen: ImageDraw.ImageDraw, outline: Box) -> None:
    x0, y0, x1, y1 = outline
    for x in range(x0, x1 + 1, _DASH + _SPACE):
        end = min(x + _DASH - 1, x1)
        for y in (y0, y1):
            pen.line((x, y, end, y), fill=_WHITE)
    for y in range(y0, y1 + 1, _DASH + _SPACE):
        end = min(y + _DASH - 1, y1)
        for x in (x0, x1):
            pen.line((x, y, x, end), fill=_WHITE)


def _depth_colors(depth_m: NDArray[np.float64]) -> ImageArray:
    position = np.log(np.maximum(depth_m, 1e-6) / _NEAREST_M) / np.log(_FARTHEST_M / _NEAREST_M)
    # Reversed: what is near is warm.
    bright = np.interp(position, (0, 1), _BRIGHT)
    colors: ImageArray = mpl.colormaps[_DEPTH_COLORS].reversed()(bright, bytes=True)[:, :3]
    return colors


def _draw_depth_scale(canvas: Image.Image, scale: int) -> None:
    size = _text_size(scale)
    width, height, margin = max(160, canvas.width // 4), size // 2, size
    depths = np.geomspace(_NEAREST_M, _FARTHEST_M, width)
    bar = np.broadcast_to(_depth_colors(depths), (height, width, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(bar)), (margin, margin))
    pen = ImageDraw.Draw(canvas)
    for tick_m in _DEPTH_TICKS_M:
        x = margin + int(np.searchsorted(depths, tick_m).clip(0, width - 1))
        text = f"{tick_m} m" if tick_m == _DEPTH_TICKS_M[-1] else f"{tick_m}"
        at = (x, margin + height + 2)
        pen.text(at, text, fill=_WHITE, font=font(size), anchor="ma", stroke_width=1, stroke_fill=(0, 0, 0))


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [D] and the first three principal components [D, 3], 0 where there are fewer than three."""
    mean = rows.mean(0)
    _, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean))
    basis = torch.zeros(rows.shape[1], 3, dtype=rows.dtype)
    found = vectors.flip(1)[:, :3]
    # A component's sign is the decomposition's whim: the largest entry is made positive.
    largest = found.gather(0, found.abs().argmax(0, keepdim=True))
    basis[:, : found.shape[1]] = found * largest.sign()
    return mean, basis


def _filled(height: int, width: int, color: str) -> ImageArray:
    return np.full((height, width, 3), rgb(color), np.uint8)


def _enlarge_cells(cells: ImageArray, scale: int) -> ImageArray:
    return cells.repeat(scale, axis=0).repeat(scale, axis=1)


def _grown(image: ImageArray, height: int) -> Image.Image:
    tile = Image.fromarray(np.ascontiguousarray(image))
    if tile.height == height:
        return tile
    # Cells stay sharp where they can: by a whole factor.
    way = Image.Resampling.BICUBIC if height % tile.height else Image.Resampling.NEAREST
    return tile.resize((round(tile.width * height / tile.height), height), way)


def _cut(text: str, width: int, size: int) -> str:
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _draw_legend(pen: ImageDraw.ImageDraw, class_names: Sequence[str], y: int, size: int) -> None:
    x, half = _GAP, size // 2
    for name in class_names:
        box = (x, y - half, x + 2 * half, y + half)
        pen.rectangle(box, fill=rgb(CLASS_COLORS[name]), outline=_BOARD_TEXT)
        pen.text((x + 3 * half, y), name, fill=_BOARD_TEXT, font=font(size), anchor="lm")
        x += 3 * half + round(font(size).getlength(name)) + 2 * size
