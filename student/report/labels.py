"""Short texts on an image that keep out of each other's way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

_PAD_X, _PAD_Y = 3, 1
_INK_OUTLINE = (0, 0, 0)

Box = tuple[int, int, int, int]


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of all images; it comes with matplotlib, so it is the same on every machine."""
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf", size)


class Labels:
    """Writes onto an image, each text beside its box where no earlier text is; the important ones go first."""

    def __init__(self, image: Image.Image, size: int) -> None:
        self._pen = ImageDraw.Draw(image)
        self._width, self._height = image.size
        self._font = font(size)
        ascent, descent = self._font.getmetrics()
        self._line = ascent + descent + 2 * _PAD_Y
        self._taken: list[Box] = []

    def width(self, text: str) -> int:
        """Return how many pixels wide a text is, with its margins."""
        return round(self._font.getlength(text)) + 2 * _PAD_X

    def plate(self, box: Box, texts: Sequence[str], color: tuple[int, int, int]) -> bool:
        """Write dark on a plate of `color`: the first of `texts` that has room at the box's upper edge.

        Returns whether one had; where none has, nothing is written.
        """
        place = self._find(box, texts, upper=True)
        if place is None:
            return False
        text, area = place
        self._pen.rectangle((area[0], area[1], area[2] - 1, area[3] - 1), fill=color)
        self._pen.text((area[0] + _PAD_X, area[1] + _PAD_Y), text, fill=(0, 0, 0), font=self._font)
        return True

    def outlined(self, box: Box, texts: Sequence[str], color: tuple[int, int, int]) -> bool:
        """Write in `color` with a dark outline, without a plate, at the box's lower edge; otherwise as `plate`."""
        place = self._find(box, texts, upper=False)
        if place is None:
            return False
        text, area = place
        self._pen.text(
            (area[0] + _PAD_X, area[1] + _PAD_Y),
            text,
            fill=color,
            font=self._font,
            stroke_width=2,
            stroke_fill=_INK_OUTLINE,
        )
        return True

    def _find(self, box: Box, texts: Sequence[str], *, upper: bool) -> tuple[str, Box] | None:
        for text in texts:
            width = self.width(text)
            for x, y in self._corners(box, width, upper):
                area = (x, y, x + width, y + self._line)
                inside = x >= 0 and y >= 0 and area[2] <= self._width and area[3] <= self._height
                if inside and not any(_overlap(area, other) for other in self._taken):
                    self._taken.append(area)
                    return text, area
        return None

    def _corners(self, box: Box, width: int, upper: bool) -> list[tuple[int, int]]:
        x0, y0, x1, y1 = box
        left, right = x0, x1 - width
        above, below = y0 - self._line, y1
        inside_top, inside_bottom = y0, y1 - self._line
        outside, other = (above, below) if upper else (below, above)
        corners = [(left, outside), (right, outside)]
        # A text inside its box must leave something of the object to be seen.
        if x1 - x0 > 1.5 * width and y1 - y0 > 3 * self._line:
            inside = inside_top if upper else inside_bottom
            corners += [(left, inside), (right, inside)]
        middle = (y0 + y1 - self._line) // 2
        return [*corners, (left, other), (right, other), (x1 + 1, middle), (x0 - width - 1, middle)]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
