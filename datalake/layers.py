"""What models say of one image, as it is drawn beside what the lake has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datalake.lake import Lake
from datalake.sample_key import SampleKey


@dataclass(frozen=True, slots=True, eq=False)
class ImageLayers:
    """The layers of one image.

    boxes: float32 [N, 4] of detections, x0, y0, x1, y1 in pixels of the record's image; None where nobody detects
    types: VEHICLE, PEDESTRIAN, SIGN or CYCLIST of each
    texts: what is written at each
    maps: name -> uint8 [h, w, 3], of a size of their own
    """

    key: SampleKey
    boxes: NDArray[np.float32] | None
    types: tuple[str, ...]
    texts: tuple[str, ...]
    maps: Mapping[str, NDArray[np.uint8]]


# Yields the layers of each image that a lake has kept.
LayersOf = Callable[[Lake], Iterable[ImageLayers]]
