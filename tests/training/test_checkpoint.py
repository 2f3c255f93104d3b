"""A run on disk is whole, or it is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from student.checkpoint import read_student
from student.config import StudentError
from student.distillation.imitation import Imitation, ImitationConfig
from student.distillation.objective import DetectionObjective, LossWeights
from tests.student.students import TAUGHT, TINY, build, samples
from training.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint, save_checkpoint
from training.errors import TrainingError
from training.fingerprint import Plain, check_same_run
from training.run_dir import RunDir


def a_checkpoint(step: int = 7) -> Checkpoint:
    imitation = Imitation(ImitationConfig(), {"shades": torch.ones(3)})
    objective = DetectionObjective(build(TAUGHT), LossWeights(), {"imitation": imitation})
    optimizer = torch.optim.AdamW(objective.student.parameters())
    return Checkpoint(
        fingerprint={"seed": 3, "lake": "s3://lake", "rate": 0.5, "snapshot": None},
        config=TAUGHT.to_json(),
        step=step,
        cursor=4 * step,
        seconds=1.5,
        objective=objective.state_dict(),
        optimizer=optimizer.state_dict(),
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = a_checkpoint()
    save_checkpoint(RunDir(str(tmp_path / "new")), saved)
    loaded = load_checkpoint(RunDir(str(tmp_path / "new")))
    assert loaded is not None
    assert (loaded.fingerprint, loaded.config, loaded.seconds) == (saved.fingerprint, saved.config, 1.5)
    assert (loaded.step, loaded.cursor) == (7, 28)
    assert all(torch.equal(loaded.objective[name], value) for name, value in saved.objective.items())
    assert loaded.optimizer == saved.optimizer


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(RunDir(str(tmp_path))) is None


def test_the_student_in_it_answers_as_the_one_that_was_saved(tmp_path: Path) -> None:
    save_checkpoint(RunDir(str(tmp_path)), a_checkpoint())
    student, checkpoint = read_student(str(tmp_path))
    assert checkpoint.step == 7
    assert not student.training
    assert student.config == build(TAUGHT).config
    images = torch.stack([one.image for one in samples(1)])
    expected = build(TAUGHT).eval().predict(images)
    found = student.predict(images)
    assert torch.equal(found.detections[0].boxes, expected.detections[0].boxes)
    assert torch.equal(found.branch_outputs["colors"], expected.branch_outputs["colors"])


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 nor this", None])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    save_checkpoint(RunDir(str(tmp_path)), a_checkpoint())
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a training checkpoint: .*; delete it") as refused:
        load_checkpoint(RunDir(str(tmp_path)))
    assert "\n" not in str(refused.value)


def test_a_file_cut_or_changed_anywhere_is_refused_or_the_same(tmp_path: Path) -> None:
    folder = RunDir(str(tmp_path))
    save_checkpoint(folder, a_checkpoint())
    path = tmp_path / CHECKPOINT_FILE
    whole, first = path.read_bytes(), load_checkpoint(folder)
    assert first is not None
    random = torch.Generator().manual_seed(0)
    refused = []
    for place in torch.randint(len(whole), (300,), generator=random).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        for content in (whole[:place], bytes(changed)):
            path.write_bytes(content)
            try:
                loaded = load_checkpoint(folder)
            except TrainingError as error:
                refused.append(str(error))
                continue
            # A flipped bit may be one that means nothing.
            assert loaded is not None
            assert (loaded.step, loaded.config, loaded.fingerprint) == (first.step, first.config, first.fingerprint)
            assert all(torch.equal(loaded.objective[name], value) for name, value in first.objective.items())
    assert len(refused) > 500
    assert not any("\n" in line for line in refused)


def test_another_file_of_torch_is_refused(tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(TrainingError, match="not a training checkpoint"):
        load_checkpoint(RunDir(str(tmp_path)))


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path: Path) -> None:
    save_checkpoint(RunDir(str(tmp_path)), replace(a_checkpoint(), config=TINY.to_json()))
    with pytest.raises(StudentError, match="the weights do not fit the configuration beside them"):
        read_student(str(tmp_path))


def test_a_folder_without_a_student_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match=r"nowhere/checkpoint\.pt: no such checkpoint; give the folder"):
        read_student(str(tmp_path / "nowhere"))


def test_a_checkpoint_without_a_student_is_refused(tmp_path: Path) -> None:
    save_checkpoint(RunDir(str(tmp_path)), replace(a_checkpoint(), objective={"network.weight": torch.ones(1)}))
    with pytest.raises(StudentError, match=r"not a student's checkpoint; give the folder that train\.py wrote to"):
        read_student(str(tmp_path))


def test_dying_while_saving_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = RunDir(str(tmp_path))
    save_checkpoint(run_dir, a_checkpoint(1))

    def dies(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(run_dir, a_checkpoint(2))
    monkeypatch.undo()
    loaded = load_checkpoint(run_dir)
    assert loaded is not None
    assert loaded.step == 1
    save_checkpoint(run_dir, a_checkpoint(3))
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT_FILE]


def test_another_run_may_not_continue_it() -> None:
    here: dict[str, Plain] = {"seed": 3, "lake": "s3://lake", "only_here": 1}
    with pytest.raises(TrainingError, match="only_here 1 instead of None, seed 3 instead of 4;"):
        check_same_run("checkpoint.pt", here, {"seed": 4, "lake": "s3://lake"})
    check_same_run("checkpoint.pt", here, dict(here))
