"""Training from detector teachers as users do: alone and beside others, stopped and continued, evaluated, exported."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from datalake.build import BuildConfig
from datalake.lake import Lake
from datalake.synthetic import DriveConfig, write_drives
from pipelines.detector_teachers import read_detector
from pipelines.evaluate import EvaluateConfig, evaluate
from pipelines.train import main, run, train_worker
from pipelines.train_config import DISTILLATION_METHODS, TrainConfig
from pipelines.train_setup import prepare_training
from student.checkpoint import read_student
from student.detector import Student
from student.export import load_exported
from teachers.card import TeacherError
from tests.lakes import build_files
from tests.pipelines.small_teachers import admit_ignorance
from tests.teachers.cards import lidar_folder
from training.checkpoint import load_checkpoint, save_checkpoint
from training.distributed import Distributed
from training.errors import TrainingError
from training.loop import LoopConfig
from training.metrics_log import HISTORY_FILE
from training.run_dir import RunDir

pytestmark = pytest.mark.integration

SIZE, STEPS = (96, 64), 4
CLOCK = {"images_per_second", "wait/data", "wait/teachers"}
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(drive_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake of the drives with a segment to examine on, a map teacher, and a run that is a detector teacher."""
    folder = tmp_path_factory.mktemp("detector")
    shutil.copytree(drive_lake.store.root, folder / "lake")
    drives = DriveConfig(image_width=SIZE[0], image_height=SIZE[1], beams=16, columns=80)
    sources = write_drives(str(folder / "val"), drives, segments=1, frames=3, seed=9)
    build_files(str(folder / "lake"), sources, BuildConfig(split="val", cameras=("FRONT",)))
    admit_ignorance(lidar_folder(folder / "lidar"))
    assert run(settings(folder, "big", "none", loop=loop(1), seed=7), QUIET) == 0
    return folder


def loop(steps: int) -> LoopConfig:
    return LoopConfig(steps=steps, checkpoint_every=2, precision="float32")


def settings(folder: Path, out: str, *teachers: str, **changes: object) -> TrainConfig:
    config = TrainConfig(
        lake=str(folder / "lake"),
        out=str(folder / out),
        teachers=teachers,
        image_size=SIZE,
        labelled_fraction=0.6,
        batch=4,
        unlabelled=2,
        min_anchor_recall=0.0,
        device="cpu",
        loop=loop(STEPS),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def alone(folder: Path, out: str) -> TrainConfig:
    """Return a training from a detector alone."""
    return settings(folder, out, f"big={folder / 'big'}", distill=("fitnet",))


def beside(folder: Path, out: str) -> TrainConfig:
    """Return a training from a detector and a map teacher together, by all methods that there are."""
    teachers = (f"big={folder / 'big'}", f"points={folder / 'lidar'}")
    return settings(folder, out, *teachers, distill=tuple(DISTILLATION_METHODS))


def log(out: Path) -> list[dict[str, float]]:
    """Return the history without what the clock says."""
    lines = [json.loads(line) for line in (out / HISTORY_FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """What an uninterrupted run with both teachers and methods leaves."""
    assert run(beside(folder, "whole"), QUIET) == 0
    return folder / "whole"


@pytest.fixture(scope="module")
def taught(folder: Path) -> Path:
    """What a run with the detector alone leaves."""
    assert run(alone(folder, "alone"), QUIET) == 0
    return folder / "alone"


def test_images_without_labels_are_there_for_a_detector_to_teach(folder: Path) -> None:
    plan = prepare_training(alone(folder, "alone"), QUIET, lambda *_: None)
    assert (plan.labelled, plan.unlabelled, plan.teachers) == (2, 2, {})


def test_a_detector_alone_teaches_a_student_that_has_no_branch_for_it(folder: Path, taught: Path) -> None:
    student, checkpoint = read_student(str(taught))
    assert student.config.branches == ()
    assert checkpoint.fingerprint["teacher.big"] == read_detector("big", str(folder / "big"))[0].weights_sha256
    lines = log(taught)
    assert len(lines) == STEPS
    assert all(line["loss/fitnet/big"] > 0 and line["gradient_norm/fitnet"] > 0 for line in lines)
    # The state of the methods is four adapters; nothing of the teacher's is kept.
    beyond = {name for name in checkpoint.objective if not name.startswith("student.")}
    assert beyond == {
        f"methods.fitnet.adapters.big.{level}.{what}" for level in range(4) for what in ("weight", "bias")
    }
    assert {
        name.removeprefix("student.") for name in checkpoint.objective.keys() - beyond
    } == student.state_dict().keys()


def test_beside_a_map_teacher_all_methods_teach(whole: Path) -> None:
    assert [spec.name for spec in read_student(str(whole))[0].config.branches] == ["points"]
    taught = {"imitation/points", "fitnet/big", "fgfi/big", "reviewkd/big"}
    assert {f"loss/{name}" for name in taught} <= set(log(whole)[0])


def test_every_method_that_learns_from_detectors_trains_on_images_with_and_without_labels(folder: Path) -> None:
    names = tuple(name for name, entry in DISTILLATION_METHODS.items() if entry.learns_from == "detectors")
    assert run(settings(folder, "every", f"big={folder / 'big'}", distill=names, loop=loop(1)), QUIET) == 0
    (line,) = log(folder / "every")
    for name in names:
        losses = [value for key, value in line.items() if key.startswith(f"loss/{name}/big")]
        assert losses, name
        assert min(losses) > 0, name


def test_a_stopped_run_ends_as_an_uninterrupted_one(folder: Path, whole: Path) -> None:
    def on_step(step: int, _: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    config = beside(folder, "stopped")
    with pytest.raises(KeyboardInterrupt):
        train_worker(prepare_training(config, QUIET, lambda *_: None), Distributed(), on_step)
    assert read_student(str(folder / "stopped"))[1].step == 2
    assert run(config, QUIET) == 0
    assert log(folder / "stopped") == log(whole)
    expected, found = (read_student(str(out))[1].objective for out in (whole, folder / "stopped"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_what_it_made_is_evaluated_and_exported_without_adapters(folder: Path, whole: Path) -> None:
    config = EvaluateConfig(
        checkpoint=str(whole),
        lake=str(folder / "lake"),
        teachers=(f"points={folder / 'lidar'}", f"big={folder / 'big'}"),
        export=True,
        device="cpu",
    )
    evaluated = evaluate(config, QUIET)
    assert {"AP50", "errors/missed", "imitation/points/R2"} <= evaluated.evaluation.metrics.keys()
    page = Path(evaluated.report).read_text()
    assert all(f"<figcaption>{shown}" in page for shown in ("FGFI, ", "ReviewKD, big, ", "LGD, ", "Scores that big "))
    exported = load_exported(str(whole / "evaluation"))
    assert exported.state_dict().keys() == Student(exported.config).state_dict().keys()


def test_the_scores_of_a_detector_that_the_student_was_not_distilled_from_are_not_shown(
    folder: Path, whole: Path
) -> None:
    config = EvaluateConfig(
        checkpoint=str(whole), lake=str(folder / "lake"), teachers=(f"big={whole}",), device="cpu", samples=1
    )
    with pytest.raises(TeacherError, match="teacher big: the student was distilled from another one"):
        evaluate(config, QUIET)


def test_a_run_is_not_continued_with_another_detector(folder: Path, taught: Path) -> None:
    place, before = RunDir(str(folder / "big")), load_checkpoint(RunDir(str(folder / "big")))
    assert before is not None
    # The detector's training went on, by a hair.
    bias = "student.backbone.downsample.0.1.bias"
    save_checkpoint(place, replace(before, objective={**before.objective, bias: before.objective[bias] + 1e-3}))
    try:
        with pytest.raises(TrainingError, match=r"a run with other settings is under way here: teacher\.big \w+ inst"):
            run(alone(folder, taught.name), QUIET)
    finally:
        save_checkpoint(place, before)


def test_a_detector_with_more_labels_than_the_student_stops_the_training(folder: Path) -> None:
    config = replace(alone(folder, "few"), labelled_fraction=0.3)
    with pytest.raises(TeacherError, match="teacher big has learned from the labels of 1 segments that the student"):
        run(config, QUIET)


def test_workers_elsewhere_get_the_detector_that_was_checked(folder: Path) -> None:
    plan = prepare_training(alone(folder, "sent"), QUIET, lambda *_: None)
    sent = pickle.loads(pickle.dumps(plan))
    images = torch.rand(1, 3, SIZE[1], SIZE[0])
    expected, found = (one.detectors["big"].predict(images).pyramid for one in (plan, sent))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["big=BIG"], "teacher big is a detector, from which --distill imitation learns nothing; name a method that"),
        (
            ["none", "--distill", "fitnet"],
            "--distill fitnet: expected a detector to learn from, as --teachers NAME=RUN",
        ),
        (
            ["big=BIG", "--distill", "imitation", "fitnet"],
            "--distill imitation: expected a teacher that answers with maps",
        ),
    ],
)
def test_methods_and_teachers_that_do_not_go_together_are_refused_in_one_line(
    folder: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = ["train", "--lake", str(folder / "lake"), "--out", str(folder / "refused"), "--teachers"]
    monkeypatch.setattr(sys, "argv", [*known, *(word.replace("BIG", str(folder / "big")) for word in words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (folder / "refused" / HISTORY_FILE).exists()
