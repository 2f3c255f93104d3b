"""Detectors that are named as teachers: told from others, and refused where they cannot teach or would leak labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from rich.console import Console

from datalake.lake import Lake
from pipelines.data import labelled_segments
from pipelines.detector_teachers import prepare_detectors, read_detector
from pipelines.train_config import DISTILLATION_METHODS, Method, TrainConfig
from student.config import AnchorShapes, StudentConfig, StudentError
from student.export import WEIGHTS_FILE, weights_file
from teachers.card import TeacherError
from teachers.loading import is_detector, read_cards
from tests.pipelines.small_teachers import write_teachers
from tests.student.students import TINY, build
from training.checkpoint import CHECKPOINT_FILE, Checkpoint, save_checkpoint
from training.fingerprint import Plain
from training.run_dir import RunDir

SIZE = (96, 64)
# Leaves another segment of the drives without labels than 0 does.
SEED = 2


def run_of(lake: Lake, /, **changes: Plain) -> dict[str, Plain]:
    """Return what decides about a run that learned from all labels of a lake."""
    known: dict[str, Plain] = {
        "lake": lake.store.url,
        "snapshot": lake.snapshot,
        "split": "train",
        "labelled_fraction": 1.0,
        "label_seed": 0,
        "image_size": str(SIZE),
        "teachers": "",
    }
    return {**known, **changes}


def write_run(folder: Path, fingerprint: Mapping[str, Plain], config: StudentConfig = TINY) -> str:
    """Write a run of no steps; return its URL."""
    student = build(config)
    checkpoint = Checkpoint(
        fingerprint=dict(fingerprint),
        config=config.to_json(),
        step=400,
        cursor=0,
        seconds=0.0,
        objective={f"student.{name}": value for name, value in student.state_dict().items()},
        optimizer={},
    )
    save_checkpoint(RunDir(str(folder)), checkpoint)
    return str(folder)


def write_export(folder: Path) -> str:
    """Write the weights of an exported student; return the folder's URL."""
    RunDir(str(folder)).write(WEIGHTS_FILE, weights_file(build(TINY)))
    return str(folder)


def prepared(
    url: str, lake: Lake, tmp_path: Path, fraction: float = 0.6, student: StudentConfig = TINY, name: str = "big"
) -> str:
    """Return what is printed of a detector that is to teach a student with so many of the labels."""
    unlabelled = labelled_segments(lake, "train", fraction, 0)[1]
    written = tmp_path / "console"
    with written.open("w") as file:
        prepare_detectors({name: url}, student, SIZE, lake, unlabelled, Console(file=file))
    return written.read_text().strip()


def test_runs_and_exports_are_detectors_and_teachers_with_a_card_are_not(drive_lake: Lake, tmp_path: Path) -> None:
    run, export = write_run(tmp_path / "run", run_of(drive_lake)), write_export(tmp_path / "export")
    assert is_detector(run)
    assert is_detector(export)
    teachers = write_teachers(tmp_path)
    # The folder of a teacher that was trained here has both.
    (Path(teachers["masks"]) / CHECKPOINT_FILE).write_bytes(b"")
    assert not any(map(is_detector, [*teachers.values(), str(tmp_path / "nowhere")]))


def test_the_folder_of_a_teacher_that_is_not_done_is_no_detectors(tmp_path: Path) -> None:
    weights = {"network.weight": torch.ones(1)}
    checkpoint = Checkpoint(fingerprint={}, config="{}", step=1, cursor=1, seconds=0.0, objective=weights, optimizer={})
    save_checkpoint(RunDir(str(tmp_path)), checkpoint)
    with pytest.raises(TeacherError, match=r"teacher big: .*checkpoint\.pt: not a student's checkpoint; give the"):
        read_detector("big", str(tmp_path))


def test_a_damaged_export_is_named(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(b"damaged")
    with pytest.raises(TeacherError, match=r"teacher big: .*student\.safetensors: not a safetensors file"):
        read_detector("big", str(tmp_path))


def test_who_asks_for_maps_is_told_that_a_detector_has_none(drive_lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=rf"big={tmp_path}: a detector, which no branch imitates; leave it out"):
        read_cards({"big": write_run(tmp_path, run_of(drive_lake))})


@pytest.mark.parametrize("changes", [{"labelled_fraction": 0.6}, {"labelled_fraction": 0.3}])
def test_a_detector_that_learned_from_no_other_labels_than_the_students_is_taken(
    drive_lake: Lake, tmp_path: Path, changes: dict[str, Plain]
) -> None:
    printed = prepared(write_run(tmp_path, run_of(drive_lake, **changes)), drive_lake, tmp_path)
    count = round(3 * float(str(changes["labelled_fraction"])))
    assert printed == (
        f"teacher big: a detector of width 16, 400 steps with the labels of {count} segments of split train of"
        f" {drive_lake.store.url}"
    )


@pytest.mark.parametrize("changes", [{}, {"labelled_fraction": 0.6, "label_seed": SEED}, {"lake": "/nowhere"}])
def test_a_detector_that_would_pass_on_labels_that_the_student_does_not_have_is_refused(
    drive_lake: Lake, tmp_path: Path, changes: dict[str, Plain]
) -> None:
    (hidden,) = labelled_segments(drive_lake, "train", 0.6, 0)[1]
    assert labelled_segments(drive_lake, "train", 0.6, SEED)[1] != {hidden}
    url = write_run(tmp_path, run_of(drive_lake, **changes))
    with pytest.raises(TeacherError, match=f"teacher big has learned from the labels of 1 segments .*, e.g. {hidden}"):
        prepared(url, drive_lake, tmp_path)


def test_with_all_labels_a_student_may_have_a_teacher_of_the_same(drive_lake: Lake, tmp_path: Path) -> None:
    printed = prepared(write_run(tmp_path, run_of(drive_lake)), drive_lake, tmp_path, fraction=1.0)
    assert "400 steps with the labels of 3 segments" in printed


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"snapshot": None}, "its checkpoint does not say whose labels it has seen, so nobody can tell"),
        (
            {"lake": "/nowhere", "split": "teach"},
            "whose labels it has seen is not known: file:///nowhere: no lake here",
        ),
        (
            {"lake": "/nowhere", "labelled_fraction": 0.6},
            "the labels of 2 segments of split train, taken for this lake's, since its own cannot be read (file:///now",
        ),
        (
            {"labelled_fraction": 0.6, "teachers": "teacher.points"},
            "; whose labels its own teachers have seen is not known: teacher.points",
        ),
        (
            {"labelled_fraction": 0.6, "image_size": "(192, 128)"},
            "; it learned from images of (192, 128) pixels, not (96, 64)",
        ),
    ],
)
def test_what_nobody_can_check_is_said(drive_lake: Lake, tmp_path: Path, changes: dict[str, Plain], told: str) -> None:
    assert told in prepared(write_run(tmp_path, run_of(drive_lake, **changes)), drive_lake, tmp_path)


def test_of_an_export_it_is_said_that_nobody_can_tell(drive_lake: Lake, tmp_path: Path) -> None:
    printed = prepared(write_export(tmp_path), drive_lake, tmp_path)
    assert printed == "teacher big: a detector of width 16, exported, so nobody can tell whose labels it has seen"


@pytest.mark.parametrize(
    ("student", "name", "message"),
    [
        (
            replace(StudentConfig.paper(), anchors=TINY.anchors),
            "big",
            "a detector of 4 levels from stride 4 on cannot teach a student of 4 from stride 1",
        ),
        (replace(TINY, anchors=AnchorShapes(sizes=((8,), (16,)))), "big", "cannot teach a student of 2 from stride 4"),
        (TINY, "keys", "teacher keys: that is a name that torch needs itself; call the teacher otherwise"),
    ],
)
def test_a_detector_whose_levels_are_not_the_students_is_refused(
    drive_lake: Lake, tmp_path: Path, student: StudentConfig, name: str, message: str
) -> None:
    with pytest.raises(TeacherError, match=message):
        prepared(write_run(tmp_path, run_of(drive_lake)), drive_lake, tmp_path, 1.0, student, name)


def test_images_that_do_not_divide_into_the_detectors_cells_are_refused(drive_lake: Lake, tmp_path: Path) -> None:
    url = write_run(tmp_path, run_of(drive_lake))
    with pytest.raises(StudentError, match="teacher big: images of 100 x 64 pixels do not divide into cells of 32"):
        prepare_detectors({"big": url}, TINY, (100, 64), drive_lake, frozenset(), Console(quiet=True))


def settings(*teachers: str, **changes: object) -> TrainConfig:
    return TrainConfig(lake="/lake", out="/out", teachers=teachers, **changes)  # type: ignore[arg-type]


def test_a_detector_makes_no_branch_and_is_not_asked_for_maps(drive_lake: Lake, tmp_path: Path) -> None:
    run, masks = write_run(tmp_path / "run", run_of(drive_lake)), write_teachers(tmp_path)["masks"]
    config = settings(f"big={run}", f"masks={masks}", mute=("big",))
    assert (config.map_teachers, config.detectors) == ({"masks": masks}, {"big": run})
    assert (config.active_teachers, config.active_detectors) == ({"masks": masks}, {})


def test_a_detector_that_no_method_learns_from_is_refused(drive_lake: Lake, tmp_path: Path) -> None:
    run, masks = write_run(tmp_path / "run", run_of(drive_lake)), write_teachers(tmp_path)["masks"]
    for teachers in ((f"big={run}",), (f"big={run}", f"masks={masks}")):
        with pytest.raises(StudentError, match="teacher big is a detector, from which --distill imitation learns noth"):
            _ = settings(*teachers).methods
    # Nobody is to be asked; and where there is no teacher at all, the default finds nobody to imitate.
    assert settings(f"big={run}", distill=("none",)).methods == ()
    assert settings("none").methods == ()


def test_the_names_of_methods_are_those_of_the_table() -> None:
    assert {*DISTILLATION_METHODS, "none"} == set(get_args(Method))


def test_settings_of_methods_that_are_off_do_not_decide_about_a_run(drive_lake: Lake) -> None:
    config = replace(settings("none"), lake=drive_lake.store.root)
    assert not [name for name in config.identity(drive_lake) if name.startswith("imitation.")]
