"""The metrics of a run as charts, each the bytes of a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from student.detections import CLASS_NAMES
from student.report.colors import CLASS_COLORS, SERIES

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]

_INK, _MUTED, _GRID = "#22262b", "#6b7280", "#e5e7eb"
_DPI = 130
_PANEL_IN = (3.9, 2.6)
_COLUMNS = 3

# The smoothed curve is the mean over this share of all steps.
_SMOOTHED_SHARE = 0.03
# A loss that falls by more than this factor is drawn on a logarithmic axis, so that its end is not flat.
_LOGARITHMIC_FROM = 30.0

_DEPTH_BINS_M = (0, 10, 20, 30, 40, 50, 60, 75, np.inf)
_BAND = 0.25
# Numbers are read on these: the ends of the scale are too dark.
_DAMAGE_COLORS, _PALEST = "RdBu_r", 1.5


class Curve(Protocol):
    """What is drawn of a `student.evaluation.detection.PrecisionRecall`."""

    @property
    def class_name(self) -> str:
        """Whose curve it is."""

    @property
    def recall(self) -> Any:
        """Share of the objects that are found: float [n], evenly from 0 to 1."""

    @property
    def precision(self) -> Any:
        """Share of the detections that are right: float [n], 0 at a recall that is not reached."""


def training_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Return a chart of a run's log: a panel for each `loss/<name>`, and for pace, rate, gradient and waiting.

    history: rows as `training.metrics_log.read_history` has them, each with `step`; a row may lack some of
        `learning_rate`, `gradient_norm`, `images_per_second`, `wait/data` and `wait/teachers` (shares of the time)
    """
    names = list(dict.fromkeys(name for row in history for name in row))
    losses = [name for name in names if name.startswith("loss/")]
    rest = [name for name in ("learning_rate", "gradient_norm", "images_per_second") if name in names]
    waits = [name for name in ("wait/data", "wait/teachers") if name in names]
    if not losses + rest + waits:
        raise ValueError(f"the history has no loss and nothing else to draw: {len(history)} rows of {names}")
    figure, panels = _panels(len(losses) + len(rest) + bool(waits))
    for axes, name in zip(panels, losses, strict=False):
        steps, values = _series(history, name)
        _draw_smoothed(axes, steps, values, SERIES[0])
        predicted = values[np.isfinite(values)]
        logarithmic = len(predicted) and predicted.min() > 0 and predicted.max() > _LOGARITHMIC_FROM * predicted.min()
        if logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=min(0.0, float(predicted.min(initial=0.0))))
        title = f"loss: {name.removeprefix('loss/')}"
        _finish(axes, title, "step", "loss (logarithmic)" if logarithmic else "loss")
    for axes, name in zip(panels[len(losses) :], rest, strict=False):
        steps, values = _series(history, name)
        if name == "learning_rate":
            axes.plot(steps, values, color=SERIES[2], linewidth=1.8)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            _draw_smoothed(axes, steps, values, SERIES[3] if name == "gradient_norm" else SERIES[1])
        axes.set_ylim(bottom=0)
        unit = {"learning_rate": "learning rate", "gradient_norm": "norm", "images_per_second": "images / s"}[name]
        title = {"images_per_second": "throughput"}.get(name, name.replace("_", " "))
        _finish(axes, title, "step", unit)
    if waits:
        axes = panels[-1]
        for name, color in zip(waits, (SERIES[0], SERIES[4]), strict=False):
            _draw_smoothed(axes, *_series(history, name), color, f"for {name.removeprefix('wait/')}")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        _legend(axes)
        _finish(axes, "waiting", "step", "share of the time")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return _png(figure)


def precision_recall(curves: Sequence[Curve]) -> bytes:
    """Return a chart of every class's precision over its recall, in the class's color, with the mean precision."""
    figure = _figure(5.8, 4.4)
    axes = figure.add_subplot()
    for curve in curves:
        recall, precision = np.asarray(curve.recall, np.float64), np.asarray(curve.precision, np.float64)
        color = _on_white(curve.class_name)
        reached = precision > 0
        label = f"{curve.class_name}  AP {float(precision.mean()):.1%}"
        axes.plot(recall[reached], precision[reached], color=color, linewidth=2.2, label=label)
        # Where a curve ends matters: what lies beyond is not found at any score.
        axes.plot(recall[reached][-1:], precision[reached][-1:], "o", color=color, markersize=5)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    if curves:
        _legend(axes)
    _finish(axes, "precision and recall", "recall (share of the objects found)", "precision (share that is right)")
    return _png(figure)


def depth_errors(true_m: ArrayLike, predicted_m: ArrayLike) -> bytes:
    """Return predicted against true distances, with a band of ±25 %, and the relative error bin by bin.

    true_m, predicted_m: float [n] in metres; pairs in which one is not finite, or the truth not above 0, are left out
    """
    true, predicted = np.asarray(true_m, np.float64), np.asarray(predicted_m, np.float64)
    if true.ndim != 1 or true.shape != predicted.shape:
        raise ValueError(f"Expected two arrays [n], got: {list(true.shape)} and {list(predicted.shape)}")
    finite = np.isfinite(true) & np.isfinite(predicted) & (true > 0)
    true, predicted = true[finite], predicted[finite]
    figure = _figure(9.6, 4.2)
    scatter, bins = figure.subplots(1, 2)

    end = 80.0 if not len(true) else 1.05 * float(max(true.max(), np.percentile(predicted, 99.5)))
    line = np.array([0.0, end])
    scatter.fill_between(line, line * (1 - _BAND), line * (1 + _BAND), color=_GRID, label=f"± {_BAND:.0%}", zorder=1)
    scatter.plot(line, line, color=_MUTED, linewidth=1, label="right", zorder=2)
    alpha = float(np.clip(15 / max(1, len(true)) ** 0.5, 0.08, 0.8))
    scatter.scatter(true, predicted, s=14, color=SERIES[0], alpha=alpha, linewidths=0, zorder=3)
    scatter.set_xlim(0, end)
    scatter.set_ylim(0, end)
    scatter.set_aspect("equal")
    _legend(scatter, "upper left")
    _finish(scatter, f"distance of {len(true):,} objects", "true distance [m]", "predicted distance [m]")

    relative = np.abs(predicted - true) / true
    which = np.digitize(true, _DEPTH_BINS_M) - 1
    counts = np.bincount(which, minlength=len(_DEPTH_BINS_M) - 1)
    means = np.array([relative[which == i].mean() if counts[i] else 0.0 for i in range(len(counts))])
    places = np.arange(len(counts))
    bins.bar(places, means, color=SERIES[5], width=0.72)
    if len(true):
        overall = float(relative.mean())
        bins.axhline(overall, color=SERIES[1], linewidth=1.4, linestyle="--", label=f"all: {overall:.1%}")
        _legend(bins, "upper left")
    bins.set_ylim(0, max(0.05, 1.25 * float(means.max())))
    low, high = _DEPTH_BINS_M[:-1], _DEPTH_BINS_M[1:]
    names = [f"{a:g} to {b:g}" if np.isfinite(b) else f"> {a:g}" for a, b in zip(low, high, strict=True)]
    bins.set_xticks(places, [f"{name}\n({count:,})" for name, count in zip(names, counts, strict=True)])
    bins.yaxis.set_major_formatter(PercentFormatter(1.0))
    _finish(bins, "AbsRel by distance", "true distance [m] (number of objects)", "mean |error| / true distance")
    return _png(figure)


def arms(table: Mapping[str, Sequence[float]], base: str, title: str, metric: str) -> bytes:
    """Return an ablation's chart: each seed's result as a point, each arm's mean and standard deviation beside it.

    table: the results of an arm's seeds, by the arm's name, one or more each
    base: the arm to compare with: its mean ± standard deviation is a band behind all others, where it has results
    metric: what the numbers are, with their unit
    """
    if empty := [name for name, values in table.items() if not len(values)]:
        raise ValueError(f"arm {empty[0]!r} has no result")
    if not table:
        raise ValueError("Expected one arm or more, got: none")
    figure = _figure(7.6, 1.3 + 0.62 * len(table))
    axes = figure.add_subplot()
    for row, (name, results) in enumerate(table.items()):
        values = np.asarray(results, np.float64)
        mean, spread = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
        color = SERIES[row % len(SERIES)]
        if name == base:
            axes.axvspan(mean - spread, mean + spread, color=_GRID, linewidth=0, zorder=0)
            axes.axvline(mean, color=_MUTED, linewidth=1, linestyle="--", zorder=1)
        axes.errorbar(
            mean, row + 0.16, xerr=spread, fmt="D", color=color, markersize=6.5, capsize=4, linewidth=2, zorder=4
        )
        axes.scatter(values, np.full(len(values), row - 0.16), s=34, color=color, alpha=0.55, linewidths=0, zorder=3)
        text = f"{mean:.4g} ± {spread:.2g}" if len(values) > 1 else f"{mean:.4g}"
        axes.annotate(
            f"{text}   n = {len(values)}",
            (1.015, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=_INK,
            annotation_clip=False,
        )
    axes.set_yticks(range(len(table)), list(table))
    axes.set_ylim(len(table) - 0.45, -0.55)
    axes.margins(x=0.08)
    band = f"; band: {base}" if base in table else ""
    _finish(axes, title, f"{metric}   (dots: seeds; diamond: mean ± standard deviation{band})", "")
    axes.grid(visible=False, axis="y")
    return _png(figure)


def gain_against_cost(points: Mapping[str, tuple[float, Sequence[float]]], x_label: str, y_label: str) -> bytes:
    """Return a chart of what arms gain over what they cost: the mean with its standard error where there are several.

    points: of each arm its cost, and its gain by seed, one or more
    """
    if empty := [name for name, (_, gained) in points.items() if not len(gained)]:
        raise ValueError(f"arm {empty[0]!r} has no result")
    figure = _figure(7.6, 4.6)
    axes = figure.add_subplot()
    axes.axhline(0.0, color=_MUTED, linewidth=1, linestyle="--", zorder=1)
    for number, (name, (cost, gained)) in enumerate(points.items()):
        values = np.asarray(gained, np.float64)
        error = float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
        color = SERIES[number % len(SERIES)]
        axes.errorbar(cost, float(values.mean()), yerr=error, fmt="D", color=color, markersize=6.5, capsize=4, zorder=4)
        axes.annotate(
            name, (cost, float(values.mean())), xytext=(7, 4), textcoords="offset points", fontsize=8, color=_INK
        )
    axes.margins(x=0.16, y=0.12)
    _finish(axes, "Gain against cost", x_label, y_label)
    return _png(figure)


def heat_map(
    damage: NDArray[np.float64], texts: Sequence[Sequence[str]], rows: Sequence[str], columns: Sequence[str], title: str
) -> bytes:
    """Return a table whose cells are the redder the more damage there is, and blue where there is the contrary.

    damage: float [R, C] within -1 … 1, NaN where nothing is known; texts: what stands in the cells
    """
    if damage.shape != (len(rows), len(columns)) or [len(row) for row in texts] != [len(columns)] * len(rows):
        raise ValueError(f"Expected damage and texts [{len(rows)}, {len(columns)}], got: {list(damage.shape)}")
    figure = _figure(2.2 + 0.98 * len(columns), 1.2 + 0.36 * len(rows))
    axes = figure.add_subplot()
    colors = mpl.colormaps[_DAMAGE_COLORS].with_extremes(bad=_GRID)
    axes.imshow(damage, cmap=colors, vmin=-_PALEST, vmax=_PALEST, aspect="auto")
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=_INK)
    _finish(axes, title, "", "")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=_INK, pad=24)
    return _png(figure)


def over_strength(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], x_label: str) -> bytes:
    """Return a panel for each metric, with a line for each name: its x and y, in the order of its x.

    Of a name's lines, those behind a comma are of its color and dashed: `one` and `one, noise`.
    """
    figure, drawn = _panels(len(panels))
    for axes, (metric, lines) in zip(drawn, panels.items(), strict=True):
        colors: dict[str, str] = {}
        for name, (x, y) in lines.items():
            whose, comma, _ = name.partition(",")
            color = colors.setdefault(whose, SERIES[len(colors) % len(SERIES)])
            axes.plot(x, y, "x--" if comma else "o-", color=color, linewidth=1.8, markersize=4, label=name)
        axes.set_ylim(bottom=0)
        _legend(axes)
        _finish(axes, metric, x_label, "")
    return _png(figure)


def class_scores(own: Floats32, theirs: Floats32, teacher: str) -> bytes:
    """Return a panel for each class but the background: a student's scores of K boxes against a teacher's.

    own, theirs: probabilities float32 [K, M] of the classes in the order of CLASS_NAMES
    """
    figure, panels = _panels(len(CLASS_NAMES) - 1)
    for number, (axes, name) in enumerate(zip(panels, CLASS_NAMES[1:], strict=True), start=1):
        axes.plot((0, 1), (0, 1), color=_MUTED, linewidth=1, linestyle="--")
        axes.scatter(own[:, number], theirs[:, number], s=14, color=_on_white(name), alpha=0.5, linewidths=0)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        _finish(axes, name, "the student's score", f"the score of {teacher}")
    return _png(figure)


def _series(history: Sequence[Mapping[str, float]], name: str) -> tuple[Floats, Floats]:
    rows = [(row["step"], row[name]) for row in history if name in row]
    steps, values = np.array(rows, np.float64).reshape(-1, 2).T
    return steps, values


def _draw_smoothed(axes: Axes, steps: Floats, values: Floats, color: str, label: str | None = None) -> None:
    axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.8)
    axes.plot(steps, _smooth(values), color=color, linewidth=1.8, label=label)


def _smooth(values: Floats) -> Floats:
    """Return the mean of each value and its neighbors on both sides, as many as there are; NaN does not count."""
    half = int(_SMOOTHED_SHARE * len(values) / 2)
    predicted = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(predicted, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(predicted)))
    here = np.arange(len(values))
    first, last = np.maximum(here - half, 0), np.minimum(here + half + 1, len(values))
    number = counts[last] - counts[first]
    return np.where(number > 0, (sums[last] - sums[first]) / np.maximum(number, 1), np.nan)


def _figure(width_in: float, height_in: float) -> Figure:
    return Figure(figsize=(width_in, height_in), dpi=_DPI, layout="constrained", facecolor="white")


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = _figure(columns * _PANEL_IN[0], rows * _PANEL_IN[1])
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def _finish(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give axes the look that all charts share."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=_INK, pad=8)
    axes.set_xlabel(x_label, fontsize=8.5, color=_MUTED)
    axes.set_ylabel(y_label, fontsize=8.5, color=_MUTED)
    axes.tick_params(which="both", labelsize=8, colors=_MUTED, labelcolor=_INK, length=0)
    axes.grid(visible=True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)


def _legend(axes: Axes, place: Literal["best", "upper left"] = "best") -> None:
    axes.legend(loc=place, fontsize=8, frameon=False, labelcolor=_INK)


def _on_white(class_name: str) -> str:
    """Return a class's color, darker where it is too bright for white paper."""
    return "#b8a500" if class_name == "SIGN" else CLASS_COLORS[class_name]


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
