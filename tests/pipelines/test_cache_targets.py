"""Caching as users start it: whole, again, after an interruption, and with what cannot work."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from datalake.build import BuildConfig
from datalake.derived_table import DerivedCommit, read_derived_commits
from datalake.lake import Lake, open_lake
from datalake.synthetic import DriveConfig, write_drives
from pipelines.cache_targets import CacheTargetsConfig, main, run
from teachers.cached import CachedTeacher
from teachers.card import WEIGHTS_FILE, read_card
from tests.lakes import build_files
from tests.teachers.cards import lidar_folder
from tests.teachers.masks import mask_folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two segments of two frames."""
    drives = DriveConfig(image_width=96, image_height=64, beams=16, columns=80, cameras=("FRONT",))
    return write_drives(str(tmp_path_factory.mktemp("drives")), drives, segments=2, frames=2, seed=1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a Mask R-CNN. Read only."""
    return mask_folder(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def built(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lake of these segments. Read only."""
    folder = tmp_path_factory.mktemp("built") / "lake"
    build_files(str(folder), sources, BuildConfig(cameras=("FRONT",)))
    return folder


@pytest.fixture
def lake(built: Path, tmp_path: Path) -> Lake:
    """The same lake, for one test to write to."""
    shutil.copytree(built, tmp_path / "lake")
    return open_lake(str(tmp_path / "lake"))


def settings(lake: Lake, teacher: str) -> CacheTargetsConfig:
    return CacheTargetsConfig(lake=lake.store.root, teacher=teacher, grid=(16, 24), image_size=(96, 64), device="cpu")


def parts(lake: Lake) -> list[DerivedCommit | None]:
    return read_derived_commits(lake.store, "teacher_mask_rcnn", lake.commits)


def branch_outputs(config: CacheTargetsConfig, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the closing line of a run that went well."""
    assert run(config, Console(width=200)) == 0
    return capsys.readouterr().out.strip().splitlines()[-1]


def test_a_run_goes_on_where_one_was_interrupted(lake: Lake, teacher: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(lake, teacher)
    closing = branch_outputs(config, capsys)
    assert closing.startswith("teacher_mask_rcnn, split train: 2 segments cached, 0 there before; 4 images in ")
    first, second = parts(lake)
    assert first is not None
    assert second is not None
    # As a run leaves it that is killed before the second commit.
    lake.store.delete(f"_derived/teacher_mask_rcnn/train/{second.segment}.json")
    assert "1 segments cached, 1 there before; 2 images" in branch_outputs(config, capsys)
    again = parts(lake)
    assert again[0] == first
    assert again[1] is not None
    assert again[1].file == second.file
    assert CachedTeacher.open(open_lake(lake.store.root), "train", read_card(teacher)).grid == (16, 24)


def test_a_lidar_teacher_is_cached_as_well(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lidar_folder(tmp_path / "lidar")
    closing = branch_outputs(settings(lake, folder), capsys)
    assert closing.startswith("teacher_lidar, split train: 2 segments cached, 0 there before; 4 images in ")
    assert CachedTeacher.open(open_lake(lake.store.root), "train", read_card(folder)).grid == (16, 24)


def test_the_weights_are_not_read_where_nothing_is_left_to_do(
    lake: Lake, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branch_outputs(settings(lake, teacher), capsys)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/card.json").write_bytes((Path(teacher) / "card.json").read_bytes())
    closing = branch_outputs(settings(lake, str(tmp_path / "bare")), capsys)
    assert "0 segments cached, 2 there before" in closing


def test_other_weights_or_settings_need_another_name(
    lake: Lake, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings(lake, teacher), Console(quiet=True)) == 0
    other = mask_folder(tmp_path / "other", seed=1)
    message = fails(["--lake", lake.store.root, "--teacher", other], monkeypatch, capsys)
    assert "made with weights" in message
    assert "under another --name" in message
    words = ["--lake", lake.store.root, "--teacher", teacher, "--image-size", "384", "256"]
    message = fails(words, monkeypatch, capsys)
    assert "grid [16, 24], not [64, 96], image_size [96, 64], not [384, 256]" in message


def fails(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command ends with, beside exit status 2."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["cache_targets", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lake", "/nowhere", "--teacher", "{teacher}"], "/nowhere: no lake here"),
        (["--lake", "{lake}", "--teacher", "/nowhere"], "/nowhere/card.json: no such file"),
        (["--lake", "{lake}", "--teacher", "{teacher}", "--split", "val"], "no split 'val', there are: train"),
        (["--lake", "{lake}", "--teacher", "{teacher}", "--name", "A/B"], "table 'teacher_A/B': expected 'teacher_'"),
        (["--lake", "{lake}", "--teacher", "{teacher}", "--grid", "0", "3"], "--grid 0: expected 1 to 65535"),
        (["--lake", "{lake}", "--teacher", "{teacher}", "--device", "abacus"], "--device abacus: Expected one of"),
        (["--lake", "{lake}", "--teacher", "{damaged}"], "does not match the card's"),
    ],
)
def test_bad_arguments_give_status_2_and_one_line(
    lake: Lake,
    teacher: str,
    tmp_path: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "card.json").write_bytes((Path(teacher) / "card.json").read_bytes())
    (damaged / WEIGHTS_FILE).write_bytes(b"half a file")
    places = {"lake": lake.store.root, "teacher": teacher, "damaged": str(damaged)}
    assert message in fails([word.format(**places) for word in words], monkeypatch, capsys)
    assert parts(lake) == [None, None]
