"""The page is one well-formed file that shows what it was given, and nothing else runs or loads."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from student.report.charts import depth_errors
from student.report.page import Page

VOID = {"meta", "img"}
NASTY = """<script>alert("1")</script> & 'AP' > 30"""


class Reader(HTMLParser):
    """Reads a page and fails at a tag that is not closed in its turn."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.cells: list[tuple[str, str]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data
        if self.open and self.open[-1] in ("td", "th", "h3"):
            self.cells.append((self.open[-1], data))


def read(page: Page, folder: Path) -> tuple[Reader, str]:
    path = folder / "page.html"
    page.write(path)
    text = path.read_text()
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open, f"never closed: {reader.open}"
    return reader, text


def full() -> Page:
    page = Page(f"Run {NASTY}")
    page.heading(NASTY)
    page.text(NASTY)
    page.image(np.zeros((20, 30, 3), np.uint8), NASTY)
    page.image(depth_errors([10.0], [12.0]), NASTY)
    page.table([[NASTY, "1.5"]], ["name", NASTY])
    page.preformatted(NASTY)
    page.metrics({NASTY: 1.0, f"{NASTY}/{NASTY}": 2.0})
    return page


def test_everything_is_escaped_and_well_formed(tmp_path: Path) -> None:
    reader, text = read(full(), tmp_path)
    assert "<script" not in text
    assert "script" not in reader.tags
    # title, h1, heading, text, two captions, table cell, header, preformatted, and the metrics' three names
    assert reader.words.count("<script>alert(") >= 10
    assert [image["alt"] for one in reader.images] == [NASTY, NASTY]


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    _, text = read(full(), tmp_path)
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)


def test_an_array_becomes_a_jpeg_that_shows_it_and_a_chart_stays_a_png(tmp_path: Path) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = (230, 160, 20)
    chart = depth_errors([10.0, 20.0], [12.0, 18.0])
    page = Page("Images")
    page.image(image, "array")
    page.image(chart, "chart")
    reader, _ = read(page, tmp_path)
    jpeg, png = (str(one["src"]).split(",", 1) for one in reader.images)
    assert jpeg[0] == "data:image/jpeg;base64"
    assert png[0] == "data:image/png;base64"
    assert base64.b64decode(png[1]) == chart
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg[1]))))
    assert np.abs(shown.astype(int) - image).mean() < 3


@pytest.mark.parametrize("image", [b"GIF89a", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_image_is_refused(image: bytes | np.ndarray) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Page("Images").image(image, "none")


def test_a_table_has_its_cells_in_order_and_numbers_to_the_right(tmp_path: Path) -> None:
    page = Page("Tables")
    page.table([["VEHICLE", "53.1 ± 0.4"], ["SIGN", "12 m"]], ["class", "AP50"])
    reader, text = read(page, tmp_path)
    assert reader.cells == [
        ("th", "class"),
        ("th", "AP50"),
        ("td", "VEHICLE"),
        ("td", "53.1 ± 0.4"),
        ("td", "SIGN"),
        ("td", "12 m"),
    ]
    assert re.findall(r'<(t[hd]) class="number">([^<]*)<', text) == [
        ("th", "AP50"),
        ("td", "53.1 ± 0.4"),
        ("td", "12 m"),
    ]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected rows of 2 cells as in the header, got: 3"):
        Page("Tables").table([["a", "b", "c"]], ["one", "two"])


def test_metrics_stand_in_groups_by_the_first_part_of_their_names(tmp_path: Path) -> None:
    page = Page("Metrics")
    page.metrics(
        {"AP": 0.31234, "time_s": 12000.0, "AP/VEHICLE": 0.5, "depth/AbsRel/near": 0.08, "AP/SIGN": float("nan")}
    )
    reader, _ = read(page, tmp_path)
    assert reader.cells == [
        ("h3", "AP"),
        ("th", "all"),
        ("td", "0.3123"),
        ("th", "VEHICLE"),
        ("td", "0.5"),
        ("th", "SIGN"),
        ("td", "nan"),
        ("th", "time_s"),
        ("td", "12,000"),
        ("h3", "depth"),
        ("th", "AbsRel/near"),
        ("td", "0.08"),
    ]


def test_parts_keep_their_order(tmp_path: Path) -> None:
    page = Page("Order")
    for word in ("first", "second"):
        page.heading(f"{word} heading")
        page.preformatted(f"{word}\n  text")
    reader, _ = read(page, tmp_path)
    places = [
        reader.words.index(text) for text in ("first heading", "first\n  text", "second heading", "second\n  text")
    ]
    assert places == sorted(places)


def test_it_can_be_read_on_a_phone_and_in_the_dark(tmp_path: Path) -> None:
    _, text = read(full(), tmp_path)
    assert '<meta name="viewport" content="width=device-width' in text
    assert "@media (prefers-color-scheme: dark)" in text


def test_a_page_in_the_making_never_stands_in_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "page.html"
    Page("old").write(path)
    page = Page("new")
    page.text("much more text")

    def full_disk(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left"):
        page.write(path)
    assert "<h1>old</h1>" in path.read_text()
    monkeypatch.undo()
    page.write(path)
    assert "much more text" in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_a_page_is_written_to_a_url() -> None:
    Page("far away").write("memory://reports/page.html")
    assert b"<h1>far away</h1>" in fsspec.filesystem("memory").cat_file("/reports/page.html")
