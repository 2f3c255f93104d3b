"""`train.py --fine-tune RUN`: the run's whole student is trained further, and what it has seen is not forgotten."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from rich.console import Console

from datalake.commit import LakeError
from datalake.lake import open_lake
from pipelines import train
from pipelines.evaluated_frames import check_unseen
from pipelines.train_config import TrainConfig
from pipelines.train_setup import prepare_training
from pipelines.trainings import ancestry_of, trainings_of
from student.checkpoint import read_student
from student.config import StudentConfig, StudentError
from tests.pipelines.small_teachers import admit_ignorance
from tests.student.students import TINY
from tests.teachers.cards import lidar_folder
from training.errors import TrainingError
from training.fingerprint import Plain
from training.loop import LoopConfig

pytestmark = pytest.mark.integration

QUIET = Console(quiet=True)
LOOP = LoopConfig(steps=2, checkpoint_every=1, precision="float32")


@pytest.fixture(scope="module")
def folder(split_lake: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lidar teacher, and a run that has learned from it on the split `train`."""
    folder = tmp_path_factory.mktemp("fine_tuning")
    admit_ignorance(lidar_folder(folder / "teacher"))
    config = TrainConfig(
        lake=split_lake,
        out=str(folder / "run"),
        teachers=(f"lidar={folder / 'teacher'}",),
        student=TINY,
        image_size=(96, 64),
        batch=2,
        min_anchor_recall=0.0,
        loop=LOOP,
        device="cpu",
    )
    assert train.run(config, QUIET) == 0
    return folder


def further(split_lake: str, run: Path, out: Path, **more: Any) -> TrainConfig:
    """Return a training of the run's student on the split `val`, of which as little is said as a user would."""
    settings: dict[str, Any] = {"batch": 2, "min_anchor_recall": 0.0, "loop": LOOP, "device": "cpu", "split": "val"}
    return TrainConfig(lake=split_lake, out=str(out), fine_tune=str(run), **{**settings, **more})


def test_it_begins_with_the_whole_student(split_lake: str, folder: Path, tmp_path: Path) -> None:
    plan = prepare_training(further(split_lake, folder / "run", tmp_path / "out"), QUIET, lambda *_: None)
    given = train.build_objective(plan).student
    before, _ = read_student(str(folder / "run"))
    assert [spec.name for spec in given.config.branches] == ["lidar"]
    assert given.config == before.config
    assert plan.config.size == (96, 64)
    state = before.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in given.state_dict().items())


def test_what_was_seen_before_is_not_forgotten(split_lake: str, folder: Path, tmp_path: Path) -> None:
    config = further(split_lake, folder / "run", tmp_path / "out")
    assert train.run(config, QUIET) == 0
    lake = open_lake(split_lake)
    before = read_student(str(folder / "run"))[0].state_dict()
    student, checkpoint = read_student(config.out)
    assert not all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert [data["split"] for data in trainings_of(checkpoint.fingerprint)] == ["val", "train"]
    for split in ("val", "train"):
        with pytest.raises(LakeError, match=rf"trained on \d segments of split {split}"):
            check_unseen(config.out, checkpoint, lake, split, QUIET)
    check_unseen(config.out, checkpoint, lake, "test", QUIET)


def test_it_goes_on_when_the_first_run_is_gone_and_not_from_another(
    split_lake: str, folder: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    shutil.copytree(folder / "run", first)
    config = further(split_lake, first, tmp_path / "out")
    assert train.run(config, QUIET) == 0
    fingerprint = read_student(config.out)[1].fingerprint
    shutil.rmtree(first)
    console = Console(width=300, record=True, file=(tmp_path / "printed").open("w"))
    assert train.run(config, console) == 0
    assert "the run is gone, and this one goes on with what it has made of it" in console.export_text()
    assert read_student(config.out)[1].fingerprint == fingerprint
    with pytest.raises(TrainingError, match=r"fine_tune \w{64} instead of \w{64}"):
        train.run(replace(config, fine_tune=config.out), QUIET)


def test_the_ancestry_of_a_run_that_was_trained_further_twice_has_all_three() -> None:
    first: dict[str, Plain] = {
        "lake": "a",
        "snapshot": 1,
        "split": "x",
        "where": None,
        "labelled_fraction": 0.5,
        "width": 16,
    }
    second: dict[str, Plain] = {**first, "split": "y", "fine_tune": "sha", **ancestry_of(first)}
    third: dict[str, Plain] = {**first, "split": "z", "fine_tune": "sha", **ancestry_of(second)}
    assert [data["split"] for data in trainings_of(third)] == ["z", "y", "x"]
    assert all(data.keys() == first.keys() - {"width"} for data in trainings_of(third))
    assert trainings_of({}) == [{}]


def test_the_commands_that_the_documentation_shows_are_understood() -> None:
    shown = (Path(__file__).parents[2] / "docs/analyses.md").read_text()
    (new,) = re.findall(r'new="(.*)"', shown)
    commands = re.findall(r"python pipelines/train.py \$new (.*)", shown)
    configs = [
        tyro.cli(TrainConfig, args=shlex.split(f"{new} {command}".replace(" RUN ", " /runs/one "), comments=True))
        for command in commands
    ]
    assert [config.where for config in configs] == ["time_of_day = 'Night'", "weather = 'rain'", None, None]
    assert configs[3].cameras == ("SIDE_LEFT", "SIDE_RIGHT")
    assert all((one.fine_tune, one.loop.steps, one.loop.keep) == ("/runs/one", 200, 50) for one in configs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fine_tune": "{folder}/nothing"}, r"checkpoint\.pt: no such checkpoint; give the folder of a run of train"),
        ({"init": "{folder}/run"}, "leave --init out"),
        ({"anchors": "paper"}, "leave --anchors out"),
        ({"student": StudentConfig(width=24)}, r"leave --preset and --student\.… out"),
        (
            {"teachers": ("other={folder}/teacher",)},
            r"no branch for teacher other \(regression, \d+\); there are: lidar",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    split_lake: str, folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    def place(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(place, value))
        return value.format(folder=folder) if isinstance(value, str) else value

    config = further(split_lake, folder / "run", tmp_path / "out")
    with pytest.raises(StudentError, match=message):
        train.run(replace(config, **{name: place(value) for name, value in change.items()}), QUIET)
