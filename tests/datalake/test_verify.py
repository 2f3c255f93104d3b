"""Every kind of damage to a lake is found and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake.lake import Lake
from datalake.schema import TABLES
from datalake.verify import verify
from tests.frames import HEIGHT, START_US, WIDTH, jpeg, make_frame, panoptic_png
from tests.lakes import build_frames


def problems(lake: Lake, *, decode: bool = False) -> list[str]:
    return [problem for _, found in verify(lake, decode=decode) for problem in found]


def data_file(lake: Lake, table: str) -> Path:
    return Path(lake.store.path(lake.commits[0].file_name(table)))


def test_a_sound_lake_has_no_problem(drive_lake: Lake) -> None:
    assert problems(drive_lake, decode=True) == []


@pytest.mark.parametrize("table", ["image", "point", "quarantine"])
def test_one_flipped_bit_is_found(own_lake: Lake, table: str) -> None:
    path = data_file(own_lake, table)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (problem,) = problems(own_lake)
    assert path.name in problem
    assert "SHA-256" in problem


def test_a_missing_file_is_found(own_lake: Lake) -> None:
    data_file(own_lake, "label").unlink()
    (problem,) = problems(own_lake)
    assert problem.endswith("missing")


def test_a_truncated_file_is_found(own_lake: Lake) -> None:
    path = data_file(own_lake, "depth")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])
    (problem,) = problems(own_lake)
    assert f"{size - 10} bytes, {size} committed" in problem


def test_a_replaced_file_is_found_even_if_it_is_sound_parquet(own_lake: Lake) -> None:
    path = data_file(own_lake, "label")
    rows = pq.read_table(path)
    pq.write_table(rows.slice(1), path)
    (problem,) = problems(own_lake)
    assert path.name in problem


def test_a_changed_commit_is_found(own_lake: Lake) -> None:
    commit = own_lake.commits[0]
    path = Path(own_lake.store.path(f"_commits/train/{commit.segment}.json"))
    path.write_text(path.read_text().replace(f'"frames":{commit.frames}', '"frames":99'))
    (problem,) = problems(own_lake)
    assert "differs from snapshot 1" in problem


def test_images_and_panoptic_labels_that_do_not_decode_are_found_where_they_are_decoded(tmp_path: Path) -> None:
    frame = make_frame()
    # Without its quantization tables, which are now comments.
    frame.images[0].image = jpeg().replace(b"\xff\xdb", b"\xff\xfe")
    label = frame.images[1].camera_segmentation_label
    label.panoptic_label = panoptic_png(np.full((HEIGHT, WIDTH), 29_001, np.uint16))
    label.panoptic_label_divisor = 1000
    lake = build_frames(tmp_path, [frame]).lake
    assert problems(lake) == []
    image, panoptic = problems(lake, decode=True)
    assert f"the JPEG of FRONT at {START_US} does not decode" in image
    assert f"the panoptic label of SIDE_LEFT at {START_US} cannot be used: it names class 29, of 0 to 28" in panoptic


def test_a_lake_without_a_nullable_column_that_came_later_is_whole(
    own_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES, "label", TABLES["label"].append(pa.field("later", pa.float32())))
    assert problems(own_lake) == []
    assert own_lake.scan("label").to_table()["later"].null_count == own_lake.scan("label").count_rows()


def test_a_column_of_a_later_version_is_accepted(own_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    place = TABLES["image"].get_field_index("weather")
    monkeypatch.setitem(TABLES, "image", TABLES["image"].remove(place))
    assert problems(own_lake) == []


def test_a_lake_without_a_required_column_is_told(own_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    required = pa.field("later", pa.float32(), nullable=False)
    monkeypatch.setitem(TABLES, "label", TABLES["label"].append(required))
    found = problems(own_lake)
    assert len(found) == len(own_lake.commits)
    assert found[0].endswith("its schema is not that of table label: column later is missing")


def test_a_column_of_another_type_is_told(own_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    place = TABLES["image"].get_field_index("weather")
    monkeypatch.setitem(TABLES, "image", TABLES["image"].set(place, pa.field("weather", pa.int8())))
    found = problems(own_lake)
    assert len(found) == len(own_lake.commits)
    assert "column weather is string nullable, not int8 nullable" in found[0]
