"""Labels of a source: each is kept whole, or ends in a fault that says why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from datalake.sources.frame import OBJECT_TYPES, Fault, FrameError, Label2D, Label3D, ProjectedLabel

# Pixels or metres; far below what a float32 can hold.
_MAX_COORDINATE = 1e9
# The parts of a box by their names in the official label.proto: `length` lies along x, `width` along y.
Box = Mapping[str, float | None]
BOX_3D = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")


def check_label_2d(
    camera: str,
    object_id: Any,
    kind: int,
    box: Box,
    difficulty: int,
    size: tuple[int, int] | None,
    faults: list[Fault],
    **details: Any,
) -> Label2D | None:
    """Return the label of an object in an image of (width, height), or None and a fault where it is of no use.

    kind: index into `OBJECT_TYPES`
    box: center_x, center_y, length, width in pixels
    details: the fields of `Label2D` that may be None
    """
    try:
        type_name, center_x, center_y, length, width = _check(
            object_id, kind, box, ("center_x", "center_y", "length", "width")
        )
        x0, y0, x1, y1 = _clip(center_x, center_y, length, width, size)
    except FrameError as error:
        text = f"2D label {object_id[:40]!r} of {camera} is left out: {error}"
        faults.append(Fault("label", "FrameError", text, "camera_box"))
        return None
    return Label2D(
        camera=camera, object_id=object_id, type=type_name, x0=x0, y0=y0, x1=x1, y1=y1, difficulty=difficulty, **details
    )


def check_label_3d(
    object_id: Any,
    kind: int,
    box: Box,
    speed_mps: tuple[float, float],
    lidar_points: int,
    difficulty: int,
    faults: list[Fault],
    **details: Any,
) -> Label3D | None:
    """Return the label of an object in the vehicle frame, or None and a fault where it is of no use.

    kind: index into `OBJECT_TYPES`
    box: center_x, center_y, center_z, length, width, height in metres, heading in radians
    details: the fields of `Label3D` that may be None
    """
    try:
        type_name, x, y, z, length, width, height, heading = _check(object_id, kind, box, BOX_3D)
    except FrameError as error:
        faults.append(Fault("label", "FrameError", f"3D label {object_id[:40]!r} is left out: {error}", "lidar_box"))
        return None
    return Label3D(
        object_id=object_id,
        type=type_name,
        center_x_m=x,
        center_y_m=y,
        center_z_m=z,
        length_m=length,
        width_m=width,
        height_m=height,
        heading_rad=heading,
        speed_x_mps=speed_mps[0],
        speed_y_mps=speed_mps[1],
        lidar_points=lidar_points,
        difficulty=difficulty,
        **details,
    )


def synced_box(box: Box) -> tuple[float, ...] | None:
    """Return a camera-synced box as `Label3D` has it, or None where a part is missing or not finite."""
    values = [box[part] for part in BOX_3D]
    known = tuple(value for value in values if value is not None and abs(value) <= _MAX_COORDINATE)
    return known if len(known) == len(values) else None


def projected_label(
    camera: str, lidar_object_id: str, kind: int, box: Box, faults: list[Fault]
) -> ProjectedLabel | None:
    """Return the label of a projected object, or None and a fault where it is of no use.

    box: as of a 2D label; it may have no area
    """
    try:
        parts = ("center_x", "center_y", "length", "width")
        type_name, center_x, center_y, length, width = _check(lidar_object_id, kind, box, parts, area=False)
    except FrameError as error:
        text = f"projected label {lidar_object_id[:40]!r} of {camera} is left out: {error}"
        faults.append(Fault("label", "FrameError", text, "projected_lidar_box"))
        return None
    x0, y0, x1, y1 = _clip(center_x, center_y, length, width, None)
    return ProjectedLabel(camera=camera, lidar_object_id=lidar_object_id, type=type_name, x0=x0, y0=y0, x1=x1, y1=y1)


def _check(object_id: Any, kind: int, box: Box, parts: tuple[str, ...], *, area: bool = True) -> tuple[Any, ...]:
    """Return the label's type and the parts of its box; raises FrameError unless it has all of them."""
    if not isinstance(object_id, str):
        raise FrameError("its id is not text")
    if not 0 < kind < len(OBJECT_TYPES):
        raise FrameError(f"its type {kind} is unknown")
    values = {part: box[part] for part in parts}
    for part, value in values.items():
        # Also true for NaN.
        if value is None or not abs(value) <= _MAX_COORDINATE:
            raise FrameError(f"its box has no finite {part}")
    length, width = values["length"] or 0.0, values["width"] or 0.0
    if area and not (length > 0 and width > 0):
        raise FrameError(f"its box has no area ({length:g} x {width:g})")
    return OBJECT_TYPES[kind], *values.values()


def _clip(
    center_x: float, center_y: float, length: float, width: float, size: tuple[int, int] | None
) -> tuple[float, float, float, float]:
    """Return x0, y0, x1, y1 in pixels, clipped to the image of (width, height) if that is known.

    Raises FrameError where nothing of the box lies inside.
    """
    x0, x1 = center_x - length / 2, center_x + length / 2
    y0, y1 = center_y - width / 2, center_y + width / 2
    if size is None:
        return x0, y0, x1, y1
    columns, rows = size
    inside = max(x0, 0.0), max(y0, 0.0), min(x1, float(columns)), min(y1, float(rows))
    # As the lake stores them: a sliver may vanish in rounding.
    left, top, right, bottom = np.array(inside, np.float32)
    if not (left < right and top < bottom):
        raise FrameError(
            f"its box, x {x0:g} to {x1:g} and y {y0:g} to {y1:g}, lies outside of the image of {columns}x{rows}"
        )
    return inside
