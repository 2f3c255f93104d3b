"""The command line, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datalake.__main__ import main
from datalake.lake import Lake
from datalake.show import save_frame
from datalake.store import Store
from tests.datalake.test_vacuum import leave_attempt
from tests.drives import DRIVE_FRAMES, DRIVE_SEGMENTS
from tests.support.programs import Call


@pytest.mark.integration
def test_info_counts_what_is_there(drive_lake: Lake) -> None:
    # The one that is run as a user runs it; the others call the same function.
    command = [sys.executable, "-m", "datalake", "info", "--lake", drive_lake.store.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    points = sum(commit.points for commit in drive_lake.commits)
    assert f"{DRIVE_SEGMENTS} segments, {DRIVE_SEGMENTS * DRIVE_FRAMES} frames, {points:,} points" in done.stdout
    boxes = drive_lake.scan("label").count_rows()
    by_type = [line for line in done.stdout.splitlines() if line.strip().startswith(("VEHICLE", "PEDEST", "CYCLIST"))]
    assert sum(int(line.split()[1].replace(",", "")) for line in by_type) == boxes


def test_verify_ends_with_1_where_a_file_is_damaged(own_lake: Lake, call: Call) -> None:
    words = ["verify", "--lake", own_lake.store.url]
    assert call(main, words)[0] == 0
    path = Path(own_lake.store.path(own_lake.commits[1].file_name("point")))
    path.write_bytes(path.read_bytes()[:-1])
    status, output, _ = call(main, words)
    assert status == 1
    assert path.name in output


def test_vacuum_deletes_only_without_dry_run(own_lake: Lake, call: Call) -> None:
    words = ["vacuum", "--lake", own_lake.store.url]
    *files, _ = leave_attempt(own_lake, own_lake.commits[0].segment)
    assert "2 files would be deleted" in call(main, [*words, "--dry-run"])[1]
    assert all(path.exists() for path in files)
    assert "2 files deleted" in call(main, words)[1]
    assert not any(path.exists() for path in files)


def test_show_draws_into_a_store(drive_lake: Lake, s3_lake: str) -> None:
    lake = drive_lake
    save_frame(lake, "train", lake.commits[0].segment, 0, "FRONT", f"{s3_lake}/images/frame.png")
    assert Store(s3_lake).read("images/frame.png").startswith(b"\x89PNG")


def test_show_draws_into_this_folder(drive_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_frame(drive_lake, "train", drive_lake.commits[0].segment, 0, "FRONT", "frame.png")
    assert [path.name for path in tmp_path.iterdir()] == ["frame.png"]


def test_vacuum_of_a_folder_that_is_no_lake_is_refused_in_one_line(tmp_path: Path, call: Call) -> None:
    image = tmp_path / "train/image/000001.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"somebody's")
    os.utime(image, (0, 0))
    assert "no lake here" in call.refused(main, ["vacuum", "--lake", str(tmp_path)])
    assert image.read_bytes() == b"somebody's"


def test_show_draws_the_frame_with_its_points_in_color(drive_lake: Lake, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "frame.png"
    status, _, errors = call(main, ["show", "--lake", drive_lake.store.url, "--frame", "2", "--out", str(out)])
    assert status == 0, errors
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 400
    # The simulated street is mostly gray; boxes and depths are not.
    assert ((pixels.max(axis=2) - pixels.min(axis=2)) > 120).mean() > 0.002


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "--lake", "{empty}"], "no lake here"),
        (["info", "--lake", "{lake}", "--snapshot", "7"], "no such snapshot; the newest is 1"),
        (["show", "--lake", "{lake}", "--segment", "nowhere"], "has no segment 'nowhere'"),
        (["vacuum", "--lake", "{lake}", "--grace-hours", "nan"], "--grace-hours nan: expected at least 0"),
        (["show", "--lake", "{lake}", "--frame", "99"], "has frames 0 to 10, not 99"),
        (["show", "--lake", "{lake}", "--camera", "SIDE_LEFT"], "has no image of SIDE_LEFT; there are: FRONT"),
        (["show", "--lake", "{lake}", "--split", "val"], "no split 'val', there are: train"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(
    drive_lake: Lake, tmp_path: Path, arguments: list[str], message: str, call: Call
) -> None:
    words = [part.format(empty=tmp_path, lake=drive_lake.store.url) for part in arguments]
    assert message in call.refused(main, words)


@pytest.mark.integration
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_info_is_printed_whole_where_the_terminal_lacks_characters(drive_lake: Lake, encoding: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "datalake", "info", "--lake", drive_lake.store.url],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "###" in found.stdout.decode(encoding)
