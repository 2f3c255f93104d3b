"""Panoptic labels: a PNG of 16 bits a pixel, class * divisor + instance."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# How many classes `CameraSegmentation.Type` of the official camera_segmentation.proto has, 0 being UNDEFINED.
PANOPTIC_CLASSES = 29

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {0: "gray", 2: "RGB", 3: "a palette", 4: "gray with alpha", 6: "RGB with alpha"}


class PanopticError(ValueError):
    """The bytes are not a panoptic label of their image."""


def check_panoptic(png: bytes, size: tuple[int, int]) -> None:
    """Raise PanopticError unless the bytes are a whole PNG of 16-bit gray pixels, of (width, height) `size`.

    Header, chunks and their checksums are looked at; nothing is decoded.
    """
    if not png.startswith(_SIGNATURE):
        raise PanopticError("it is no PNG")
    kinds: list[bytes] = []
    position = len(_SIGNATURE)
    while position < len(png) and (not kinds or kinds[-1] != b"IEND"):
        length, kind = struct.unpack_from(">I4s", png, position) if position + 8 <= len(png) else (0, b"")
        end = position + 12 + length
        if not kind or end > len(png):
            raise PanopticError("its PNG is cut off")
        if zlib.crc32(memoryview(png)[position + 4 : end - 4]) != int.from_bytes(png[end - 4 : end], "big"):
            raise PanopticError(f"chunk {kind.decode('latin-1')!r} of its PNG fails its CRC")
        kinds.append(kind)
        position = end
    if not kinds or kinds[0] != b"IHDR" or b"IDAT" not in kinds or kinds[-1] != b"IEND":
        raise PanopticError("its PNG is cut off")
    width, height, bits, color = struct.unpack_from(">IIBB", png, 16)
    if (bits, color) != (16, 0):
        raise PanopticError(f"its PNG is {bits}-bit {_COLOR_TYPES.get(color, f'color type {color}')}, not 16-bit gray")
    if (width, height) != size:
        raise PanopticError(f"it is {width}x{height}, its image {size[0]}x{size[1]}")


def decode_panoptic(
    png: bytes | memoryview, divisor: int, size: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return the class uint8 [H, W] and the instance int32 [H, W] of each pixel.

    size: (width, height) that the label is scaled to, by nearest neighbors

    Raises PanopticError where the PNG does not decode, or names a class that there is not.
    """
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            if image.mode not in ("I;16", "I"):
                raise PanopticError(f"its pixels are of mode {image.mode}, not 16-bit gray")
            scaled = image if size is None else image.resize(size, Image.Resampling.NEAREST)
            code = np.array(scaled).astype(np.int32)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, PanopticError):
            raise
        raise PanopticError(f"its PNG does not decode ({type(error).__name__}: {error})") from error
    if divisor < 1:
        raise PanopticError(f"its divisor is {divisor}")
    classes = code // divisor
    if classes.size and (most := int(classes.max())) >= PANOPTIC_CLASSES:
        raise PanopticError(f"it names class {most}, of 0 to {PANOPTIC_CLASSES - 1} (divisor {divisor})")
    return classes.astype(np.uint8), code % divisor
