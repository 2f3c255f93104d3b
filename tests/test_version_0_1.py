"""What version 0.1 wrote is read: `assets/version_0_1`, made by its own commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from datalake.derived_table import open_derived_table, read_derived_commits
from datalake.lake import open_lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.verify import verify
from student.checkpoint import read_student
from teachers.cached import CachedTeacher
from teachers.card import TeacherCard, read_card
from teachers.load import load_teacher
from tests.student.students import samples
from training.checkpoint import load_checkpoint
from training.metrics_log import read_history
from training.run_dir import RunDir

OLD = Path(__file__).parent / "assets/version_0_1"


def test_a_lake_is_read_and_found_whole(tmp_path: Path) -> None:
    lake = open_lake(str(shutil.copytree(OLD / "lake", tmp_path / "lake")))
    stream = SampleStream(lake, LoaderConfig(global_batch=2, image_size=(96, 64)))
    found = [sample for batch in stream.loader() for sample in batch]
    assert len(found) == 4
    assert all(sample.lidar is not None and len(sample.lidar.points[0]) for sample in found)
    assert [problem for _, problems in verify(lake) for problem in problems] == []


def test_a_cached_teachers_table_is_read(tmp_path: Path) -> None:
    lake = open_lake(str(shutil.copytree(OLD / "lake", tmp_path / "lake")))
    (commit, _) = read_derived_commits(lake.store, "teacher_mask_rcnn", lake.commits)
    assert commit is not None
    table = open_derived_table(lake, "teacher_mask_rcnn", "train", commit.origin.version)
    assert table.dataset().count_rows() == 4
    card = TeacherCard(
        name="mask_rcnn",
        kind="classification",
        architecture=table.origin.settings["architecture"],
        options=table.origin.settings["options"],
        channels=len(table.origin.settings["class_names"]),
        class_names=tuple(table.origin.settings["class_names"]),
        weights_sha256=table.origin.version,
    )
    cached = CachedTeacher.open(lake, "train", card)
    width, height = cached.image_size
    stream = SampleStream(lake, LoaderConfig(global_batch=4, image_size=(width, height), points=False, shuffle=False))
    target = cached.predict(list(stream), *cached.grid)
    rows = {(row["segment"], row["timestamp_us"], row["camera"]): row for row in table.dataset().to_table().to_pylist()}
    for key, values, valid in zip(target.keys, target.values, target.valid, strict=True):
        row = rows[key.segment, key.timestamp_us, key.camera]
        assert values.flatten().tolist() == row["class"]
        assert valid.flatten().tolist() == row["valid"]
    assert target.confidence is not None
    assert float(target.confidence.max()) > 0


def test_a_teacher_is_loaded_with_its_metrics() -> None:
    card = read_card(str(OLD / "teacher"))
    assert card.kind == "regression"
    assert card.metrics == {"mIoU": 0.5, "accuracy": 0.75, "IoU/CAR": 0.25, "training/steps": 3.0}
    assert load_teacher(str(OLD / "teacher")).card == card


def test_a_runs_student_finds_what_it_found_then() -> None:
    student, checkpoint = read_student(str(OLD / "run"))
    assert (checkpoint.step, checkpoint.fingerprint) == (2, {"seed": 1, "bfloat16": False})
    assert len(read_history(RunDir(str(OLD / "run")))) == 2
    expected = json.loads((OLD / "answers.json").read_text())
    found = student.predict(torch.stack([one.image for one in samples(2)]))
    for detections, boxes, scores in zip(found.detections, expected["boxes"], expected["scores"], strict=True):
        torch.testing.assert_close(detections.scores, torch.tensor(scores), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(detections.boxes, torch.tensor(boxes), atol=0.05, rtol=1e-3)
    for name, (mean, deviation) in expected["said"].items():
        output = found.branch_outputs[name]
        assert float(output.mean()) == pytest.approx(mean, abs=1e-4)
        assert float(output.std()) == pytest.approx(deviation, abs=1e-4)


def test_a_run_is_marked_as_one_that_cannot_be_resumed() -> None:
    checkpoint = load_checkpoint(RunDir(str(OLD / "run")))
    assert checkpoint is not None
    assert not checkpoint.resumable
