"""Training with LGD as users do: without a teacher, and beside one from whom another method learns."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.lgd_instructive import Options
from benchmarks.lgd_instructive import run as measure
from datalake.lake import Lake
from pipelines.train import main, run, train_worker
from pipelines.train_config import TrainConfig
from pipelines.train_setup import prepare_training
from student.checkpoint import read_student
from student.config import StudentError
from student.detector import Student
from student.distillation.trained import read_lgd
from tests.pipelines.small_teachers import admit_ignorance
from tests.support.history import logged
from tests.teachers.cards import lidar_folder
from training.distributed import Distributed
from training.loop import LoopConfig

pytestmark = pytest.mark.integration

QUIET = Console(quiet=True)
DETECTION = ("objectness", "rpn_box", "classification", "box", "depth")
LOSSES = {f"loss/lgd/{name}" for name in ("distillation", *DETECTION)}


def settings(lake: Lake, out: Path, *teachers: str, **changes: object) -> TrainConfig:
    config = TrainConfig(
        lake=str(lake.store.root),
        out=str(out),
        teachers=teachers or ("none",),
        distill=("lgd",),
        image_size=(96, 64),
        batch=2,
        min_anchor_recall=0.0,
        device="cpu",
        loop=LoopConfig(steps=3, checkpoint_every=1, precision="float32"),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(drive_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `train.py --teachers none --distill lgd` leaves."""
    out = tmp_path_factory.mktemp("lgd")
    words = "--teachers none --distill lgd --image-size 96 64 --batch 2 --min-anchor-recall 0 --device cpu"
    more = "--loop.steps 3 --loop.checkpoint-every 1 --loop.precision float32"
    with pytest.MonkeyPatch.context() as patch:
        places = ["--lake", str(drive_lake.store.root), "--out", str(out)]
        patch.setattr(sys, "argv", ["train", *places, *words.split(), *more.split()])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return out


def test_without_a_teacher_the_student_learns_from_its_labels(whole: Path) -> None:
    student, checkpoint = read_student(str(whole))
    assert student.config.branches == ()
    lines = logged(whole)
    assert len(lines) == 3
    assert all(line[name] > 0 for line in lines for name in LOSSES - {"loss/lgd/depth"})
    assert all(line["gradient_norm/lgd"] > 0 for line in lines)
    assert checkpoint.fingerprint["lgd.weight"] == 1
    assert Student(student.config).state_dict().keys() == student.state_dict().keys()


def test_a_stopped_run_ends_as_an_uninterrupted_one(drive_lake: Lake, whole: Path, tmp_path: Path) -> None:
    def on_step(step: int, _: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    config = settings(drive_lake, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_worker(prepare_training(config, QUIET, lambda *_: None), Distributed(), on_step)
    assert run(config, QUIET) == 0
    assert logged(tmp_path) == logged(whole)
    expected, found = (read_student(str(out))[1].objective for out in (whole, tmp_path))
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_beside_a_map_teacher_both_methods_teach(drive_lake: Lake, tmp_path: Path) -> None:
    admit_ignorance(lidar_folder(tmp_path / "lidar"))
    teacher = f"points={tmp_path / 'lidar'}"
    once = LoopConfig(steps=1, precision="float32")
    config = settings(drive_lake, tmp_path / "out", teacher, distill=("imitation", "lgd"), loop=once)
    assert run(config, QUIET) == 0
    assert {"loss/imitation/points", *LOSSES} <= set(logged(tmp_path / "out")[0])
    # Alone it asks no teacher; the branch stays.
    alone = replace(config, distill=("lgd",))
    assert (alone.methods, alone.active_teachers) == (("lgd",), {})
    assert list(alone.map_teachers) == ["points"]


def test_a_detector_from_which_it_learns_nothing_is_refused(drive_lake: Lake, whole: Path, tmp_path: Path) -> None:
    config = settings(drive_lake, tmp_path, f"big={whole}")
    with pytest.raises(StudentError, match="teacher big is a detector, from which --distill lgd learns nothing"):
        _ = config.methods
    assert replace(config, distill=("fitnet", "lgd")).methods == ("fitnet", "lgd")


def test_the_maps_of_a_run_are_measured_on_a_split(drive_lake: Lake, whole: Path, tmp_path: Path) -> None:
    student, checkpoint = read_student(str(whole))
    method = read_lgd(student, checkpoint)
    state = {f"methods.lgd.{name}": value for name, value in method.state_dict().items()}
    assert all(torch.equal(value, checkpoint.objective[name]) for name, value in state.items())
    lake = tmp_path / "lake"
    shutil.copytree(drive_lake.store.root, lake)
    options = Options(
        run=str(whole), lake=str(lake), split="train", batch=2, device="cpu", output=tmp_path / "measured.json"
    )
    # After three steps there is nothing to see yet.
    assert measure(options, QUIET) == 1
    found = json.loads((tmp_path / "measured.json").read_text())
    assert found["step"] == 3
    assert set(found["AP50"]) == {"student", "maps"}
    without = replace(checkpoint, objective={name: v for name, v in checkpoint.objective.items() if "lgd" not in name})
    with pytest.raises(StudentError, match=r"expected a run of .* with --distill lgd, got: one without"):
        read_lgd(student, without)
