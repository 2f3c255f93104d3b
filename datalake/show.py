"""A frame as an image: boxes with depth, points on the image, and the scene from above."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pyarrow.dataset as ds
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from datalake.commit import Commit, LakeError
from datalake.derived_table import AUTOLABEL, open_derived_table
from datalake.lake import Lake
from datalake.layers import ImageLayers, LayersOf
from datalake.sources.frame import CAMERAS
from datalake.store import Store

TYPE_COLORS = {"VEHICLE": "#ffb000", "PEDESTRIAN": "#fe6100", "CYCLIST": "#dc267f", "SIGN": "#648fff"}
_IGNORED_COLOR = "#b0b0b0"
_DEPTH_COLORS = "turbo"
_MAX_DEPTH_M = 60.0
_VIEW_M = 50.0


def draw_frame(
    lake: Lake,
    split: str,
    segment: str,
    frame: int,
    camera: str,
    layers: LayersOf | None = None,
    labels: str | None = None,
) -> Figure:
    """Return a figure of the `frame`-th frame of a segment, seen by `camera` and from above.

    layers: what models say of the image: detections, dashed, and maps in a row below
    labels: a table of auto-labels, `autolabel_<name>`, in the place of the humans' 2D boxes

    Raises LakeError where the lake has no such segment, frame or camera.
    """
    commit = find_segment(lake, split, segment)
    rows = lake.of_commits(commit).images(["timestamp_us", "camera"]).to_pylist()
    times = sorted({row["timestamp_us"] for row in rows})
    if not 0 <= frame < len(times):
        raise LakeError(f"segment {segment} has frames 0 to {len(times) - 1}, not {frame}")
    timestamp_us = times[frame]
    if {"timestamp_us": timestamp_us, "camera": camera} not in rows:
        raise LakeError(f"frame {frame} of {segment} has no image of {camera}; there are: {_cameras(rows)}")
    here = (ds.field("timestamp_us") == timestamp_us) & (ds.field("camera") == camera)
    jpeg = _rows(lake, commit, "image", ["jpeg"], here)[0]["jpeg"]
    image = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    drawn = _rows(lake, commit, "label", None, here)
    title = "2D boxes and their mean depth"
    if labels is not None:
        of_segment = _auto_labels(lake, commit, labels)
        drawn = [row for row in of_segment if (row["timestamp_us"], row["camera"]) == (timestamp_us, camera)]
        title = f"{labels}: score, mean depth, agreement of the lidar; gray: ignored"
    depth = _rows(lake, commit, "depth", None, here)[0]
    now = ds.field("timestamp_us") == timestamp_us
    point = _rows(lake, commit, "point", ["x_m", "y_m", "z_m"], now)[0]
    boxes = _rows(lake, commit, "label_3d", None, now)
    told = None
    if layers is not None:
        only = lake.of_commits(commit).where(f"timestamp_us = {timestamp_us} AND camera = '{camera}'")
        (told,) = layers(only)

    height, width = image.shape[:2]
    # Two images below each other, and the view from above as tall as both.
    image_in = max(2.2, 6.0 * height / width)
    maps = {} if told is None else told.maps
    map_in = 1.5 if maps else 0.0
    figure = plt.figure(figsize=(6 + 2 * image_in, 2 * image_in + map_in), layout="constrained", dpi=120)
    parts: Any = figure.subfigures(2, 1, height_ratios=(2 * image_in, map_in)) if maps else [figure]
    upper, *lower = parts
    axes = upper.subplot_mosaic([["boxes", "above"], ["points", "above"]], width_ratios=(6, 2 * image_in))
    draw_boxes(axes["boxes"], image, drawn, title)
    if told is not None:
        draw_detections(axes["boxes"], told)
    for below in lower:
        for place, (name, shown) in zip(np.ravel(below.subplots(1, len(maps))), maps.items(), strict=True):
            place.imshow(shown)
            _frame(place, name)
    draw_points(axes["points"], image, depth)
    draw_above(axes["above"], point, boxes)
    figure.suptitle(f"{segment}  frame {frame}  {camera}", fontsize=8)
    return figure


def draw_boxes(axes: Axes, image: NDArray[np.uint8], labels: list[dict[str, Any]], title: str) -> None:
    """Draw the image with its 2D boxes, each with type and mean depth; auto-labels with what they have beside."""
    axes.imshow(image)
    for label in labels:
        ignored = label.get("ignored", False)
        color = _IGNORED_COLOR if ignored else TYPE_COLORS[label["type"]]
        corner, width, height = (label["x0"], label["y0"]), label["x1"] - label["x0"], label["y1"] - label["y0"]
        axes.add_patch(
            mpl.patches.Rectangle(
                corner, width, height, fill=False, edgecolor=color, linewidth=0.9, linestyle=":" if ignored else "-"
            )
        )
        text = "no point" if label["depth_m"] is None else f"{label['depth_m']:.0f} m"
        if "score" in label:
            score, agreement = ("?" if label[name] is None else f"{label[name]:.2f}" for name in ("score", "agreement"))
            text = f"{score} {text} {agreement}"
        axes.text(
            *corner, text, fontsize=4.5, color="black", va="bottom", bbox={"facecolor": color, "pad": 0.4, "lw": 0}
        )
    _frame(axes, title)


def draw_detections(axes: Axes, layers: ImageLayers) -> None:
    """Add a student's detections, dashed, with what is written at each."""
    for box, kind, text in zip([] if layers.boxes is None else layers.boxes, layers.types, layers.texts, strict=True):
        x0, y0, x1, y1 = box.tolist()
        color = TYPE_COLORS[kind]
        axes.add_patch(
            mpl.patches.Rectangle(
                (x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=0.9, linestyle="--"
            )
        )
        axes.text(x0, y1, text, fontsize=4.5, color=color, va="top")


def draw_points(axes: Axes, image: NDArray[np.uint8], depth: dict[str, Any]) -> None:
    """Draw the image, darkened, under its lidar points, colored by their distance from the camera."""
    axes.imshow((image * 0.45).astype(np.uint8))
    size = max(0.3, 220 / max(1, len(depth["u"])) ** 0.55)
    shown = axes.scatter(
        depth["u"], depth["v"], c=depth["depth_m"], s=size, cmap=_DEPTH_COLORS, vmin=0, vmax=_MAX_DEPTH_M, linewidths=0
    )
    axes.set_xlim(0, image.shape[1])
    axes.set_ylim(image.shape[0], 0)
    inside = axes.inset_axes((0.03, 0.92, 0.3, 0.03))
    bar = axes.figure.colorbar(shown, cax=inside, orientation="horizontal")
    bar.set_label("depth [m]", fontsize=5, labelpad=1, color="white")
    bar.ax.tick_params(labelsize=5, length=1.5, pad=1, colors="white")
    _frame(axes, f"{len(depth['u']):,} lidar points on the image")


def draw_above(axes: Axes, point: dict[str, Any], boxes: list[dict[str, Any]]) -> None:
    """Draw points and 3D boxes from above, the vehicle in the middle, driving upwards."""
    x_m, y_m, z_m = (np.asarray(point[name], np.float32) for name in ("x_m", "y_m", "z_m"))
    size = min(2.5, 5e4 / max(1, len(x_m)))
    # The ground lies at 0: starting the colors below it keeps it off the background.
    axes.scatter(-y_m, x_m, c=z_m, s=size, cmap="viridis", vmin=-2, vmax=3, linewidths=0)
    for box in boxes:
        half = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2 * (box["length_m"], box["width_m"])
        cos, sin = np.cos(box["heading_rad"]), np.sin(box["heading_rad"])
        corners = half @ np.array([[cos, sin], [-sin, cos]]) + (box["center_x_m"], box["center_y_m"])
        outline = np.stack((-corners[:, 1], corners[:, 0]), axis=1)
        color = TYPE_COLORS[box["type"]]
        axes.add_patch(mpl.patches.Polygon(outline, fill=False, edgecolor=color, linewidth=0.8))
    axes.plot(0, 0, marker="^", color="red", markersize=4)
    axes.set_xlim(-_VIEW_M, _VIEW_M)
    axes.set_ylim(-_VIEW_M, _VIEW_M)
    axes.set_facecolor("#111111")
    axes.set_aspect("equal")
    _frame(axes, f"{len(x_m):,} points and {len(boxes)} 3D boxes from above, ±{_VIEW_M:g} m")


def save_frame(
    lake: Lake,
    split: str,
    segment: str,
    frame: int,
    camera: str,
    url: str,
    layers: LayersOf | None = None,
    labels: str | None = None,
) -> None:
    """Write the figure of `draw_frame` to a PNG file, on a disk or in a store."""
    figure = draw_frame(lake, split, segment, frame, camera, layers, labels)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    plt.close(figure)
    folder, _, name = url.rpartition("/")
    Store(folder or ("/" if url.startswith("/") else ".")).write(name, png.getvalue())


def find_segment(lake: Lake, split: str, segment: str) -> Commit:
    """Return the commit of a segment of the split; raises LakeError, naming some that there are, where it has none."""
    commits = lake.in_split(split)
    found = [commit for commit in commits if commit.segment == segment]
    if not found:
        names = ", ".join(commit.segment for commit in commits[:5])
        raise LakeError(f"split {split!r} has no segment {segment!r}; it has {len(commits)}, the first: {names}")
    return found[0]


def _rows(
    lake: Lake, commit: Commit, table: str, columns: list[str] | None, where: ds.Expression | None = None
) -> list[dict[str, Any]]:
    belongs = ds.field("segment") == commit.segment
    wanted = belongs if where is None else belongs & where
    rows: list[dict[str, Any]] = lake.scan(table, columns, wanted, commit.split).to_table().to_pylist()
    return rows


def _auto_labels(lake: Lake, commit: Commit, table: str) -> list[dict[str, Any]]:
    """Return the rows of a segment; raises LakeError where the table has none, or is no table of auto-labels."""
    if not table.startswith(AUTOLABEL):
        raise LakeError(f"--labels {table}: expected a table {AUTOLABEL}NAME, which pipelines/autolabel.py writes")
    opened = open_derived_table(lake.of_commits(commit), table, commit.split)
    try:
        rows: list[dict[str, Any]] = opened.read(commit.segment).to_pylist()
    finally:
        opened.close()
    return rows


def _cameras(rows: list[dict[str, Any]]) -> str:
    return ", ".join(sorted({row["camera"] for row in rows}, key=CAMERAS.index))


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=6, pad=2)
    axes.set_xticks([])
    axes.set_yticks([])
