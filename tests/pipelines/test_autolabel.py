"""Labelling as users start it: whole, again, killed in the middle, and with what cannot work."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from datalake.build import BuildConfig
from datalake.commit import LakeError
from datalake.derived_table import open_derived_table, read_derived_commits
from datalake.lake import Lake, open_lake
from datalake.synthetic import DriveConfig, write_drives
from pipelines import autolabel
from pipelines.autolabel import AutolabelConfig, main, run
from teachers.autolabel.table import AutoLabels
from teachers.card import TeacherError, TrainingData, read_card, write_card
from tests.lakes import build_files
from tests.orphans import Program
from tests.support.data import ROOT
from tests.support.programs import Call

TABLE = "autolabel_some"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lake of three splits of two frames a segment. Read only."""
    folder = tmp_path_factory.mktemp("built")
    drives = DriveConfig(image_width=96, image_height=64, beams=16, columns=80, cameras=("FRONT",))
    for seed, (split, segments) in enumerate({"train": 5, "val": 1, "test": 1}.items(), start=1):
        sources = write_drives(str(folder / split), drives, segments=segments, frames=2, seed=seed)
        build_files(str(folder / "lake"), sources, BuildConfig(split=split, cameras=("FRONT",)))
    return folder / "lake"


@pytest.fixture
def lake(built: Path, tmp_path: Path) -> Lake:
    """The same lake, for one test to write to."""
    shutil.copytree(built, tmp_path / "lake")
    return open_lake(str(tmp_path / "lake"))


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run in this process."""
    monkeypatch.setattr(autolabel, "run_in_processes", autolabel._run_here)


def settings(lake: Lake, teachers: dict[str, str], **changes: object) -> AutolabelConfig:
    config = AutolabelConfig(
        lake=lake.store.root,
        teachers=tuple(f"{name}={url}" for name, url in teachers.items()),
        name="some",
        image_size=(96, 64),
        device="cpu",
        local=True,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def words(lake: Lake, teachers: dict[str, str]) -> list[str]:
    named = [f"{name}={url}" for name, url in teachers.items()]
    options = ["--name", "some", "--image-size", "96", "64", "--device", "cpu", "--local"]
    return ["--lake", lake.store.root, "--teachers", *named, *options]


def checksums(lake: Lake) -> dict[str, str]:
    """Return segment -> checksum of its rows, of those that are labelled."""
    parts = read_derived_commits(lake.store, TABLE, lake.in_split("train"))
    return {part.segment: part.file.sha256 for part in parts if part is not None}


def told(config: AutolabelConfig, capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    assert run(config, Console(width=200)) == status
    return capsys.readouterr().out


@pytest.mark.integration
@pytest.mark.usefixtures("_here")
def test_a_labelling_that_is_killed_and_run_again_leaves_the_table_of_one_that_was_not(
    lake: Lake, built: Path, two_teachers: dict[str, str], tmp_path: Path
) -> None:
    whole = open_lake(str(shutil.copytree(built, tmp_path / "whole")))
    assert run(settings(whole, two_teachers), Console(quiet=True)) == 0
    expected = checksums(whole)
    assert len(expected) == 5

    killed = Program([str(ROOT / "pipelines/autolabel.py"), *words(lake, two_teachers)], tmp_path / "killed.log")
    commits = Path(lake.store.root) / f"_derived/{TABLE}/train"
    killed.await_(lambda: commits.is_dir() and any(commits.iterdir()))
    assert killed.stop(signal.SIGKILL) == -signal.SIGKILL
    killed.await_no_descendants()
    assert 0 < len(checksums(lake)) < 5
    assert run(settings(lake, two_teachers), Console(quiet=True)) == 0
    assert checksums(lake) == expected
    rows = open_derived_table(lake, TABLE, "train").dataset().to_table()
    assert len(rows) > 0
    # Untrained teachers are never right ten times: nothing is calibrated, and nothing is a label.
    assert set(rows["ignored"].to_pylist()) == {True}


@pytest.mark.usefixtures("_here")
def test_what_is_labelled_is_skipped_and_its_calibration_kept(
    lake: Lake, two_teachers: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(lake, two_teachers)
    output = told(config, capsys)
    assert "autolabel_some, split train: 5 segments labelled, 0 there before; 10 images in " in output
    assert "VEHICLE: too few detections to calibrate; its detections are ignored" in output
    first = checksums(lake)
    # As a run leaves it that is killed before the last commit.
    lake.store.delete(f"_derived/{TABLE}/train/{max(first)}.json")
    monkeypatch.setattr(autolabel, "propose_segment", lambda *_: TeacherError("asked about the split to calibrate on"))
    assert "1 segments labelled, 4 there before; 2 images" in told(config, capsys)
    assert checksums(lake) == first


@pytest.mark.usefixtures("_here")
def test_labels_are_judged_on_another_split(
    lake: Lake, two_teachers: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diagram = tmp_path / "reliability.png"
    output = told(settings(lake, two_teachers, judge="test", diagram=str(diagram)), capsys)
    for name in ("mask", "lidar", "consensus", "VEHICLE", "small", "40m+", "precision", "AbsRel"):
        assert name in output
    assert diagram.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("_here")
def test_the_mask_teacher_alone_agrees_with_nobody(lake: Lake, two_teachers: dict[str, str]) -> None:
    alone = {"masks": two_teachers["masks"]}
    assert run(settings(lake, alone), Console(quiet=True)) == 0
    rows = open_derived_table(lake, TABLE, "train").dataset().to_table()
    assert set(rows["agreement"].to_pylist()) == {None}
    assert any(depth is not None for depth in rows["depth_m"].to_pylist())
    assert AutoLabels.open(lake, "train", "some").teachers == {
        "mask_rcnn": read_card(two_teachers["masks"]).weights_sha256
    }


@pytest.mark.usefixtures("_here")
def test_other_settings_need_another_name(lake: Lake, two_teachers: dict[str, str]) -> None:
    assert run(settings(lake, two_teachers), Console(quiet=True)) == 0
    # Of another split as well: they would be calibrated otherwise.
    for split in ("train", "test"):
        with pytest.raises(LakeError, match=r"made with other settings: precision 0.8, not 0.9; .* another --name"):
            run(settings(lake, two_teachers, split=split, precision=0.9), Console(quiet=True))
    with pytest.raises(LakeError, match=r"made with other settings: teachers .* another --name"):
        run(settings(lake, {"masks": two_teachers["masks"]}, split="test"), Console(quiet=True))


@pytest.mark.usefixtures("_here")
def test_a_segment_that_fails_costs_its_labels_alone(
    lake: Lake, two_teachers: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = lake.in_split("train")[2].segment
    label_task = autolabel.label_task

    def fail(task: autolabel.SegmentTask, *rest: object) -> object:
        if task.base.segment == bad:
            raise TeacherError("an image does not decode")
        return label_task(task, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(autolabel, "label_task", fail)
    assert f"failed {bad}: an image does not decode" in told(settings(lake, two_teachers), capsys, status=1)
    assert set(checksums(lake)) == {base.segment for base in lake.in_split("train")} - {bad}


def test_a_teacher_that_has_learned_the_labels_is_refused(
    lake: Lake, two_teachers: dict[str, str], tmp_path: Path
) -> None:
    masks = str(shutil.copytree(two_teachers["masks"], tmp_path / "masks"))
    seen = TrainingData(lake="/lake", snapshot=1, segments={"teach": (lake.in_split("val")[0].segment,)})
    write_card(masks, replace(read_card(masks), data=seen))
    with pytest.raises(TeacherError, match="teacher masks was trained on 1 of the student's segments"):
        run(settings(lake, {**two_teachers, "masks": masks}), Console(quiet=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--calibrate-on", "train"], "--split train: its segment"),
        (["--judge", "val"], "--judge val: its segment"),
        (["--judge", "moon"], "no split 'moon'"),
        (["--diagram", "/nowhere.png"], "--diagram: expected --judge SPLIT"),
        (["--name", "A/B"], "table 'autolabel_A/B': expected 'autolabel_'"),
        (["--precision", "1.5"], "--precision 1.5: expected"),
        (["--teachers", "points={points}"], "expected a mask teacher (mask_rcnn), and beside it a lidar teacher"),
        (["--teachers", "a={masks}", "b={masks}"], "--teachers a b: expected a mask teacher"),
    ],
)
def test_bad_arguments_give_status_2_and_one_line(
    built: Path, two_teachers: dict[str, str], changes: list[str], message: str, call: Call
) -> None:
    changed = [word.format(**two_teachers) for word in changes]
    assert message in call.refused(main, [*words(open_lake(str(built)), two_teachers), *changed])
