"""What clusters of features are, on a page: the metrics, cluster maps, knees and colors of principal components."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from student.evaluation.segmentation import ImageClusters, LabelledImage
from student.report.colors import SERIES
from student.report.images import ImageArray, beside
from student.report.page import Page

Integers = NDArray[np.int64]
Metrics = Mapping[str, Mapping[str, Mapping[str, float]]]

_NOTHING = (24, 26, 30)
_PANEL_PX, _COLUMNS = 384, 4
_PERCENTILES = (0.02, 0.98)
_HEADLINES = (
    "A@{k}/iou",
    "A@knee/iou",
    "A@{k}/best",
    "B@2/oracle",
    "B@2/rule",
    "B@knee/oracle",
    "C@8/miou",
    "C@64/miou",
)
_PROTOCOLS = (
    "A: clusters of each image, split into connected parts, are matched one-to-one with its labelled objects; the mean"
    " IoU over objects, 0 for one that no part is left for (`best`: its most similar part, unmatched). B: vehicles,"
    " pedestrians and cyclists as one mask; the IoU of the most similar cluster (`oracle`, which looks at the truth)"
    " and of that which a rule names, chosen on other images. C: one clustering for all images; the mean IoU over eight"
    " groups of classes, each cluster one group for the first number of clusters, several sharing one for the others."
    " In brackets: 95 % intervals of a bootstrap over segments."
)
_OF_CURVES = (
    "Inertia over the number of clusters, one line for each drawn frame, with its knee; dashed: 1/K, which has a knee"
    " without any cluster."
)
_OF_MAPS = (
    "as many clusters as the knee says; and the first three principal components of these frames' cells as red, green"
    " and blue."
)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What of one network's features is drawn.

    rows: float32 [M, h * w, D]; clusters: of all M images; `frames` of them are drawn
    """

    rows: Tensor
    clusters: ImageClusters
    grid: tuple[int, int]


def metric_rows(metrics: Metrics, clusters: int, *, intervals: bool = True) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row for each name: its headline metrics, with their intervals or without."""
    known = [name.format(k=clusters) for name in _HEADLINES]
    names = [name for name in known if any(name in each for each in metrics.values())]
    rows = [[name, *(_written(each.get(metric), intervals) for metric in names)] for name, each in metrics.items()]
    return ["features", *names], rows


def fill_page(
    page: Page,
    metrics: Metrics,
    gains: Mapping[str, Metrics],
    images: Sequence[LabelledImage],
    frames: Sequence[int],
    shown: Mapping[str, Shown],
    clusters: int,
) -> None:
    """Add tables, and for some frames what each of the features makes of them.

    gains: by the name of what they are compared with, differences like `metrics`
    frames: the numbers of the images to draw
    """
    page.heading("Objects and classes")
    page.text(_PROTOCOLS)
    header, rows = metric_rows(metrics, clusters)
    page.table(rows, header)
    for base, differences in gains.items():
        page.heading(f"Above {base}")
        header, rows = metric_rows(differences, clusters)
        page.table(rows, header)
    page.heading("How many clusters")
    page.image(knee_curves({name: one.clusters for name, one in shown.items()}, frames), _OF_CURVES)
    page.heading("Cluster maps")
    colors = {name: component_colors(one, frames) for name, one in shown.items()}
    for place, frame in enumerate(frames):
        image = images[frame]
        panels = [("image", _photo(image.image)), (f"{image.truth.count} objects", _painted(image.truth.ids - 1))]
        for name, one in shown.items():
            count = int(one.clusters.knees[frame])
            panels.append((f"{name}: {count}", _grown(_painted(one.clusters.at_knee()[frame]))))
        for name in shown:
            panels.append((f"{name}: components", _grown(colors[name][place])))
        page.image(beside(panels, columns=_COLUMNS), f"{image.segment}: {_OF_MAPS}")


def component_colors(shown: Shown, frames: Sequence[int]) -> list[ImageArray]:
    """Return the first three principal components of some images' cells as colors uint8 [h, w, 3], scaled alike."""
    rows = shown.rows[list(frames)].double().flatten(0, 1)
    centered = rows - rows.mean(0)
    _, _, basis = torch.linalg.svd(centered, full_matrices=False)
    kept = basis[:3] * basis[:3].gather(1, basis[:3].abs().argmax(1, keepdim=True)).sign()
    values = centered @ kept.T
    low, high = torch.quantile(values, torch.tensor(_PERCENTILES, dtype=torch.float64), dim=0)
    scaled = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    bytes_ = (scaled * 255).round().byte().reshape(len(frames), *shown.grid, -1).numpy()
    missing = 3 - bytes_.shape[-1]
    return [np.pad(each, ((0, 0), (0, 0), (0, missing))) for each in bytes_]


def knee_curves(clusters: Mapping[str, ImageClusters], frames: Sequence[int]) -> bytes:
    """Return a chart, the bytes of a PNG, of each features' inertia over the number of clusters in some images."""
    columns = min(3, len(clusters))
    rows = -(-len(clusters) // columns)
    figure = Figure(figsize=(3.9 * columns, 2.9 * rows), dpi=130, layout="constrained")
    for number, (name, found) in enumerate(clusters.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        counts = np.arange(1, found.inertia.shape[1] + 1)
        axes.plot(counts, 1 / counts, color="#6b7280", linewidth=1, linestyle="--")
        for line, frame in enumerate(frames):
            curve = found.inertia[frame] / max(float(found.inertia[frame, 0]), 1e-12)
            color, knee = SERIES[line % len(SERIES)], int(found.knees[frame])
            axes.plot(counts, curve, color=color, linewidth=1.5)
            axes.plot([knee], [curve[knee - 1]], "o", color=color, markersize=5)
        axes.set_title(name, fontsize=10)
        axes.set_ylim(0, 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("clusters")
        axes.set_ylabel("inertia, share of one cluster's")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _written(metric: Mapping[str, float] | None, with_interval: bool) -> str:
    if metric is None:
        return "-"
    if not with_interval:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def _photo(image: Tensor) -> ImageArray:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _painted(labels: Integers) -> ImageArray:
    """Return labels [h, w] as colors; what is below 0 is dark."""
    palette = np.array([mpl.colormaps["tab20"](i % 20, bytes=True)[:3] for i in range(20)], np.uint8)
    painted: ImageArray = np.where((labels >= 0)[..., None], palette[labels % 20], np.array(_NOTHING, np.uint8))
    return painted


def _grown(cells: ImageArray) -> ImageArray:
    factor = max(1, _PANEL_PX // cells.shape[1])
    return cells.repeat(factor, 0).repeat(factor, 1)
