"""Range images, made again from the points of a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray

from datalake.commit import LakeError
from datalake.lake import Lake
from datalake.sources.frame import LASERS

_PROJECTIONS = ("camera_1", "u_1", "v_1", "camera_2", "u_2", "v_2")
_POINT = ("laser", "return_index", "intensity", "elongation", "no_label_zone", *_PROJECTIONS)
_CELL = ("range_row", "range_column", "range_m")
_LABELS = ("instance_id", "semantic_class")


@dataclass(frozen=True, slots=True)
class RangeImage:
    """One return of a laser, as the record has it.

    image: float32 [H, W, 4], range in metres, intensity, elongation, and 1 or -1 in a no-label zone or not; -1 in all
        of a cell where nothing returned
    projections: int32 [H, W, 6], camera (as in table `point`), u and v, twice; 0 where there is none
    segmentation: int32 [H, W, 2], instance and semantic class, 0 where there is none; None where nothing of the
        frame is labelled
    """

    image: NDArray[np.float32]
    projections: NDArray[np.int32]
    segmentation: NDArray[np.int32] | None


def read_range_images(lake: Lake, segment: str, timestamp_us: int) -> dict[tuple[str, int], RangeImage]:
    """Return the range images of a frame by laser ("TOP") and return (1, 2), those that have a point.

    Cells are the record's, bit by bit, but for what was quarantined: those points are missing. A return
    without a point is left out.

    Raises LakeError for a frame that the lake does not have, or that was built when cells were not kept yet.
    """
    here = ds.field("segment") == segment
    at = here & (ds.field("timestamp_us") == timestamp_us)
    rows = lake.scan("point", [*_POINT, *_CELL, *_LABELS], filter=at).to_table()
    if len(rows) != 1:
        raise LakeError(f"{lake.store.url}: no frame of {segment} at {timestamp_us}")
    lists = {name: rows.column(name).combine_chunks() for name in rows.column_names}
    there = {name: values for name, values in lists.items() if values[0].is_valid}
    point = {name: values.flatten().to_numpy(zero_copy_only=False) for name, values in there.items()}
    shapes = {
        row["sensor"]: (row["height"], row["width"])
        for row in lake.scan("calibration", ["sensor", "kind", "height", "width"], filter=here).to_table().to_pylist()
        if row["kind"] == "laser"
    }
    images = {}
    for laser, number in sorted(set(zip(point["laser"].tolist(), point["return_index"].tolist(), strict=True))):
        name = LASERS[laser] or ""
        height, width = shapes.get(name, (None, None))
        if height is None or width is None or not point.keys() >= set(_CELL):
            raise LakeError(
                f"{lake.store.url}: {segment} was built before the lake kept cells and ranges; build it into a new lake"
            )
        mine = (point["laser"] == laser) & (point["return_index"] == number)
        images[name, number] = _image({key: values[mine] for key, values in point.items()}, height, width)
    return images


def _image(point: dict[str, NDArray[Any]], height: int, width: int) -> RangeImage:
    """Return the image of the points of one return."""
    cells = point["range_row"], point["range_column"]
    image = np.full((height, width, 4), -1, np.float32)
    zone = np.where(point["no_label_zone"], 1, -1)
    image[cells] = np.stack([point["range_m"], point["intensity"], point["elongation"], zone], axis=1)
    projections = np.zeros((height, width, 6), np.int32)
    projections[cells] = np.stack([point[name] for name in _PROJECTIONS], axis=1)
    segmentation = None
    if "semantic_class" in point:
        segmentation = np.zeros((height, width, 2), np.int32)
        segmentation[cells] = np.stack([point[name] for name in _LABELS], axis=1)
    return RangeImage(image, projections, segmentation)
