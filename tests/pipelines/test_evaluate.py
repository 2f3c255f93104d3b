"""Examining a trained student as users do: from the command line, with what cannot work, and with an export."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from datalake.commit import LakeError
from datalake.lake import open_lake
from pipelines import train
from pipelines.cache_targets import CacheTargetsConfig
from pipelines.cache_targets import run as cache_targets
from pipelines.detector_teachers import read_detector
from pipelines.evaluate import METRICS_FILE, REPORT_FILE, EvaluateConfig, evaluate, main, run
from pipelines.train_config import TrainConfig
from student.checkpoint import read_student
from student.export import PROGRAM_FILE, WEIGHTS_FILE, load_exported
from teachers.card import TrainingData, read_card, write_card
from tests.support.programs import Call
from tests.teachers.cards import lidar_folder
from training.checkpoint import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from training.loop import LoopConfig
from training.metrics_log import HISTORY_FILE
from training.run_dir import RunDir

pytestmark = pytest.mark.integration

FRAMES, STEPS = 4, 3
SIZE = (96, 64)


@pytest.fixture(scope="module")
def folder(split_lake: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of two segments to train on and one to examine on, a lidar teacher, and a run that never heard it."""
    folder = tmp_path_factory.mktemp("evaluate")
    shutil.copytree(split_lake, folder / "lake")
    lidar_folder(folder / "teacher")
    config = TrainConfig(
        lake=str(folder / "lake"),
        out=str(folder / "run"),
        teachers=(f"lidar={folder / 'teacher'}",),
        distill=("none",),
        image_size=SIZE,
        batch=2,
        min_anchor_recall=0.0,
        loop=LoopConfig(steps=STEPS, checkpoint_every=STEPS, precision="float32"),
        device="cpu",
    )
    assert train.run(config, Console(quiet=True)) == 0
    return folder


def settings(folder: Path, **more: object) -> EvaluateConfig:
    """Return an examination beside the teacher."""
    known = {
        "checkpoint": str(folder / "run"),
        "lake": str(folder / "lake"),
        "teachers": (f"lidar={folder / 'teacher'}",),
        "batch": 3,
        "device": "cpu",
    }
    return EvaluateConfig(**{**known, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def examined(folder: Path) -> tuple[Path, str]:
    """What an examination with an export left, and printed."""
    console = Console(width=120, record=True, file=(folder / "printed").open("w"))
    assert run(settings(folder, export=True), console) == 0
    return folder / "run/evaluation", console.export_text()


def test_the_metrics_say_what_was_examined(folder: Path, examined: tuple[Path, str]) -> None:
    text = (examined[0] / METRICS_FILE).read_text()
    metrics = json.loads(text, parse_constant=pytest.fail)
    assert text == json.dumps(metrics, indent=1, sort_keys=True) + "\n"
    found = metrics["metrics"]
    assert {"AP50", "recall@100", "imitation/lidar/R2", "imitation/lidar/R2/position"} <= found.keys()
    assert found["images_per_second"] > 0
    assert metrics["samples"] == FRAMES
    assert metrics["checkpoint"]["step"] == STEPS
    assert metrics["fingerprint"]["split"] == "train"
    lake = open_lake(str(folder / "lake"))
    assert metrics["evaluated"]["segments"] == [commit.segment for commit in lake.in_split("val")]
    assert metrics["evaluated"]["snapshot"] == lake.snapshot
    assert metrics["teachers"]["lidar"]["weights_sha256"] == read_card(str(folder / "teacher")).weights_sha256
    assert {"python", "torch", "torchvision"} <= metrics["versions"].keys()


def test_frames_are_seen_as_in_the_training(examined: tuple[Path, str]) -> None:
    how = json.loads((examined[0] / METRICS_FILE).read_text())["evaluated"]
    assert (how["cameras"], how["image_size"], how["bfloat16"]) == (["FRONT"], list(SIZE), False)
    assert "the student was trained with" not in examined[1]


def test_a_teacher_that_is_looked_up_is_imitated_as_well_as_one_that_is_asked(
    folder: Path, examined: tuple[Path, str], tmp_path: Path
) -> None:
    lake = shutil.copytree(folder / "lake", tmp_path / "lake")
    config = settings(folder, lake=str(lake), cached=("lidar",), out=str(tmp_path / "out"))
    with pytest.raises(LakeError, match="table teacher_lidar lacks 1 of 1 segments of split 'val'"):
        evaluate(config, Console(quiet=True))
    for split in ("train", "val"):
        answers = CacheTargetsConfig(
            lake=str(lake), teacher=str(folder / "teacher"), split=split, grid=(16, 24), image_size=SIZE, device="cpu"
        )
        assert cache_targets(answers, Console(quiet=True)) == 0
        for table in ("point", "depth"):
            shutil.rmtree(lake / split / table)
    found = evaluate(config, Console(quiet=True)).evaluation.metrics
    expected = json.loads((examined[0] / METRICS_FILE).read_text())["metrics"]
    imitation = [name for name in expected if name.startswith("imitation/lidar/")]
    assert {name: found[name] for name in imitation} == pytest.approx(
        {name: expected[name] for name in imitation}, rel=1e-3, abs=1e-4
    )


def test_another_size_of_images_is_told(folder: Path, tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=(tmp_path / "printed").open("w"))
    config = settings(folder, teachers=("none",), samples=2, out=str(tmp_path), image_size=(128, 96))
    assert run(config, console) == 0
    assert "image size 128, 96: the student was trained with 96, 64" in console.export_text()
    assert json.loads((tmp_path / METRICS_FILE).read_text())["evaluated"]["image_size"] == [128, 96]


def test_the_page_is_one_file_and_is_named_at_the_end(examined: tuple[Path, str]) -> None:
    page = (examined[0] / REPORT_FILE).read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "It was trained without lidar." in page
    assert f"Each of {STEPS} steps" in page
    assert re.search(r"trained with loop\.steps +3\n", page)
    assert examined[1].strip().endswith(str(examined[0] / REPORT_FILE))
    assert re.search(r"imitation/lidar/R2 .*the training mean of each cell", examined[1])


def test_the_export_is_of_the_checkpoints_student(folder: Path, examined: tuple[Path, str]) -> None:
    metrics = json.loads((examined[0] / METRICS_FILE).read_text())["metrics"]
    assert metrics["export/images"] == FRAMES
    assert metrics["export/detections"] > 0
    assert metrics["export/box_px"] < 1e-3
    assert (examined[0] / PROGRAM_FILE).stat().st_size > (examined[0] / WEIGHTS_FILE).stat().st_size
    own, told = read_student(str(folder / "run"))[0].state_dict(), load_exported(str(examined[0])).state_dict()
    assert all(torch.equal(own[name], value) for name, value in told.items())


def test_a_run_and_its_export_are_the_same_detector_teacher(folder: Path, examined: tuple[Path, str]) -> None:
    opened = [read_detector("big", str(url)) for url in (folder / "run", examined[0])]
    run, exported = (one.teacher for one in opened)
    assert run.config == exported.config
    assert run.weights_sha256 == exported.weights_sha256
    assert run.weights_sha256 == hashlib.sha256((examined[0] / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert [one.checkpoint is None for one in opened] == [False, True]


def test_runs_and_results_may_lie_anywhere(folder: Path) -> None:
    there = RunDir("memory://runs/far")
    there.write(CHECKPOINT_FILE, (folder / "run" / CHECKPOINT_FILE).read_bytes())
    # This run has gone on since, and is in the middle of a line.
    log = (folder / "run" / HISTORY_FILE).read_bytes() + b'{"step": 3, "loss/box": 1.0}\n{"step": 4, "lo'
    there.write(HISTORY_FILE, log)
    evaluated = evaluate(settings(folder, checkpoint=there.url, teachers=("none",), samples=3), Console(quiet=True))
    assert evaluated.report == "memory://runs/far/evaluation/report.html"
    page, metrics = there.read(f"evaluation/{REPORT_FILE}"), there.read(f"evaluation/{METRICS_FILE}")
    assert page is not None
    assert metrics is not None
    assert f"Each of {STEPS} steps" in page.decode()
    assert json.loads(metrics)["samples"] == 3
    assert not [name for name in evaluated.evaluation.metrics if name.startswith(("imitation/", "export/"))]


def test_more_can_be_put_on_the_page(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, teachers=("none",), samples=2, out=str(tmp_path))
    run(config, Console(quiet=True), lambda page: page.heading("The lake"))
    assert "<h2>The lake</h2>" in (tmp_path / REPORT_FILE).read_text()


def test_a_run_that_was_carried_away_from_its_lake_can_be_examined(folder: Path, tmp_path: Path) -> None:
    copy_run(folder, tmp_path, lake="file:///gone")
    console = Console(width=200, record=True, file=(tmp_path / "printed").open("w"))
    carried = settings(folder, checkpoint=str(tmp_path), teachers=("none",), samples=2)
    assert run(carried, console) == 0
    assert "the lake of the training cannot be read" in console.export_text()
    with pytest.raises(ValueError, match="the student was trained on 2 segments of split train"):
        run(replace(carried, split="train"), console)


def copy_run(folder: Path, copy: Path, **fingerprint: str | None) -> None:
    """Save the run's checkpoint again, with a changed fingerprint."""
    checkpoint = load_checkpoint(RunDir(str(folder / "run")))
    assert checkpoint is not None
    changed = {**checkpoint.fingerprint, **fingerprint}
    save_checkpoint(
        RunDir(str(copy)), replace(checkpoint, fingerprint={k: v for k, v in changed.items() if v is not None})
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "/nowhere"], "/nowhere/checkpoint.pt: no such checkpoint"),
        (["--lake", "/nowhere"], "/nowhere: no lake here"),
        (["--split", "none"], "no split 'none', there are: teach, test, train, val"),
        (["--split", "train"], "the student was trained on 2 segments of split train"),
        (["--teachers", "mask={teacher}"], "--teachers mask: this student has no branch for it, only for: lidar"),
        (["--teachers", "lidar"], "--teachers lidar: expected NAME=FOLDER"),
        (["--teachers", "lidar={teacher}", "--train-split", "val"], "are in both splits, val and val"),
        (["--teachers", "lidar={taught}"], "teacher lidar was trained on 1 of the student's segments"),
        (["--checkpoint", "{unknown}"], "does not name the lake, snapshot and split"),
        (["--checkpoint", "{unsized}"], "does not say with which image_size the student was trained"),
        (
            ["--checkpoint", "{other}", "--teachers", "lidar={teacher}"],
            "teacher lidar: the student was distilled from another one",
        ),
        (["--cameras", "SIDE_LEFT"], "has 0 images of SIDE_LEFT"),
        (["--image-size", "90", "60"], "images of 90 x 60 pixels do not divide into cells of 32"),
        (["--samples", "0"], "--samples 0: expected at least 1"),
        (["--batch", "0"], "--batch 0: expected at least 1"),
    ],
)
def test_bad_arguments_give_status_2_and_one_line(
    folder: Path, tmp_path: Path, words: list[str], message: str, call: Call
) -> None:
    copy_run(folder, tmp_path / "unknown", lake=None)
    copy_run(folder, tmp_path / "unsized", image_size="(96,")
    copy_run(folder, tmp_path / "other", **{"teacher.lidar": "0" * 64})
    (segment,) = (commit.segment for commit in open_lake(str(folder / "lake")).in_split("val"))
    taught = lidar_folder(tmp_path / "taught")
    write_card(
        taught, replace(read_card(taught), data=TrainingData(lake="/lake", snapshot=1, segments={"t": (segment,)}))
    )
    places = {
        "teacher": folder / "teacher",
        "taught": taught,
        "unknown": tmp_path / "unknown",
        "unsized": tmp_path / "unsized",
    }
    filled = [word.format(**places, other=tmp_path / "other") for word in words]
    known = ["--checkpoint", str(folder / "run"), "--lake", str(folder / "lake")]
    line = call.refused(main, [*known, "--out", str(tmp_path / "out"), *filled])
    assert line.startswith("evaluate: ")
    assert message in line
    assert not (tmp_path / "out").exists()
