"""A page that holds a run's images, charts and metrics in one file."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from PIL import Image

_JPEG_QUALITY = 88
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_NUMBER = re.compile(r"[-+]?[\d.,]+( ?[±%] ?[\d.,]*)*( ?[a-zA-Z/²]{1,4})?|nan")

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --muted: #656d76; --line: #d8dee4; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0f1216; --ink: #e4e7eb; --muted: #9aa4af; --line: #2c333b; --card: #171b21; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(0.8rem, 3vw, 2.5rem) 4rem; max-width: 1280px;
  background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0.5rem 0 1.5rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 0.8rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; }
figure { margin: 1.2rem 0 1.8rem; }
img { display: block; max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
figcaption { margin-top: 0.45rem; color: var(--muted); font-size: 0.9rem; max-width: 60rem; }
@media (max-width: 700px) { .chart { overflow-x: auto; } .chart img { max-width: none; width: 44rem; } }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.92rem; }
th, td { padding: 0.35rem 0.9rem 0.35rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 0.8rem 1rem;
  overflow-x: auto; font-size: 0.82rem; line-height: 1.25; }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 1rem; }
.group { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 0.7rem 1rem; }
.group h3 { margin: 0 0 0.3rem; font-size: 0.95rem; }
.group table { width: 100%; }
.group th { font-weight: 400; overflow-wrap: anywhere; }
.group td { padding-right: 0; }
.group tr:last-child > * { border-bottom: 0; }
"""


class Page:
    """An HTML page that is put together from top to bottom and needs no other file, no network and no script."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def image(self, image: bytes | NDArray[np.uint8], caption: str) -> None:
        """Add an image with a caption below it.

        image: the bytes of a PNG or JPEG, as they are; or RGB uint8 [H, W, 3], which becomes a JPEG
        """
        data = image if isinstance(image, bytes) else _jpeg(image)
        kind = next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)
        if kind is None:
            raise ValueError(f"Expected the bytes of a PNG or JPEG, got: {data[:8]!r}")
        words = html.escape(caption)
        source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        # The letters of a chart would be too small on a phone: there it is moved sideways instead.
        sort = ' class="chart"' if kind == "image/png" else ""
        self._parts.append(f'<figure{sort}><img alt="{words}" src="{source}"><figcaption>{words}</figcaption></figure>')

    def table(self, rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
        """Add a table; numbers stand at the right of their column."""
        if wrong := [row for row in rows if len(row) != len(header)]:
            raise ValueError(f"Expected rows of {len(header)} cells as in the header, got: {len(wrong[0])}")
        # A heading stands where its column's cells do.
        numeric = [bool(rows) and all(_NUMBER.fullmatch(row[i]) for row in rows) for i in range(len(header))]
        head = "".join(_cell(text, "th", right) for text, right in zip(header, numeric, strict=True))
        body = "".join(
            f"<tr>{''.join(_cell(text, 'td', bool(_NUMBER.fullmatch(text))) for text in row)}</tr>\n" for row in rows
        )
        self._parts.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        )

    def preformatted(self, text: str) -> None:
        """Add text whose spaces and lines stay as they are."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def metrics(self, metrics: Mapping[str, float]) -> None:
        """Add named numbers, those with the same part before the first '/' together under it.

        A name without '/' joins the group that is called so: `AP` those of `AP/VEHICLE`, as `all`.
        """
        named = {name.partition("/")[0] for name in metrics if "/" in name}
        groups: dict[str, list[tuple[str, float]]] = {}
        for name, value in metrics.items():
            group, _, rest = name.partition("/")
            groups.setdefault(group if group in named else "", []).append(
                (rest or "all" if group in named else name, value)
            )
        cards = []
        for group, members in groups.items():
            title = f"<h3>{html.escape(group)}</h3>" if group else ""
            rows = "".join(
                f"<tr>{_cell(name, 'th', False)}{_cell(_written(value), 'td', True)}</tr>\n" for name, value in members
            )
            cards.append(f'<div class="group">{title}<table><tbody>{rows}</tbody></table></div>')
        self._parts.append(f'<div class="groups">{"".join(cards)}</div>')

    def write(self, url: str | Path) -> None:
        """Write the page to a path or an fsspec URL; whoever reads a local file never sees half a page."""
        page = self._html().encode()
        fs, path = fsspec.core.url_to_fs(str(url))
        if not isinstance(fs, LocalFileSystem):
            # An object store shows an object once it is whole.
            fs.pipe_file(path, page)
            return
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.unfinished")
        unfinished.write_bytes(page)
        unfinished.replace(file)

    def _html(self) -> str:
        title = html.escape(self._title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"Expected an image uint8 [H, W, 3], got: {image.dtype} {list(image.shape)}")
    file = io.BytesIO()
    # Full resolution of color too: thin colored boxes and letters fray without it.
    Image.fromarray(image).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _cell(text: str, tag: str, right: bool) -> str:
    kind = ' class="number"' if right else ""
    return f"<{tag}{kind}>{html.escape(text)}</{tag}>"


def _written(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
