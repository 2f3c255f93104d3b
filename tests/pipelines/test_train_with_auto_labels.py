"""Training on auto-labels where human ones are hidden: which labels count, and what belongs to the run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from datalake.lake import Lake, open_lake
from datalake.loader import LoaderConfig, SampleStream
from pipelines.ablate import AblateConfig, jobs_of
from pipelines.train import run, train_worker
from pipelines.train_config import TrainConfig
from pipelines.train_setup import prepare_training
from student.checkpoint import read_student
from student.config import StudentError
from student.distillation.batch import DetectionBatch
from student.distillation.objective import DetectionObjective
from teachers.autolabel.table import AutoLabels
from tests.support.history import logged
from tests.teachers.autolabel.evidences import evidence
from tests.teachers.autolabel.hand_labels import label
from training.distributed import Distributed
from training.errors import TrainingError
from training.loop import LoopConfig
from training.objective import Batch

pytestmark = pytest.mark.integration

QUIET = Console(quiet=True)


def settings(lake: Lake, out: Path, **changes: object) -> TrainConfig:
    config = TrainConfig(
        lake=str(lake.store.root),
        out=str(out),
        image_size=(96, 64),
        labelled_fraction=0.4,
        auto_labels="hand",
        batch=4,
        unlabelled=2,
        min_anchor_recall=0.0,
        device="cpu",
        loop=LoopConfig(steps=4, checkpoint_every=1, precision="float32"),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def lake(drive_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The lake of three segments, with two tables of auto-labels, `hand` and `other`. Read only."""
    folder = tmp_path_factory.mktemp("labelled") / "lake"
    shutil.copytree(drive_lake.store.root, folder)
    lake = open_lake(str(folder))
    label(lake)
    label(lake, "other", evidence({"mask_score": 0.95}))
    return lake


@pytest.fixture(scope="module")
def whole(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run leaves."""
    out = tmp_path_factory.mktemp("whole")
    assert run(settings(lake, out), QUIET) == 0
    return out


def test_hidden_labels_are_replaced_and_human_ones_win(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Batch] = []
    collate = DetectionObjective.collate

    def watched(self: DetectionObjective, batch: Batch, *rest: Any) -> DetectionBatch:
        batches.append(batch)
        return collate(self, batch, *rest)

    monkeypatch.setattr(DetectionObjective, "collate", watched)
    assert run(settings(lake, tmp_path), QUIET) == 0
    config = LoaderConfig(points=False, shuffle=False, global_batch=1, image_size=(96, 64))
    human = {sample.key: sample for sample in SampleStream(lake, config)}
    labels = AutoLabels.open(lake, "train", "hand")
    with_labels, without = settings(lake, tmp_path).segments(lake)
    assert (len(with_labels), len(without)) == (1, 2)
    for batch in batches:
        for place, sample in enumerate(batch.samples):
            original = human[sample.key]
            expected = original.objects if place < batch.labelled else labels.objects(original)
            assert sample.key.segment in (with_labels if place < batch.labelled else without)
            assert torch.equal(sample.objects.boxes, expected.boxes)
            assert (sample.objects.weight is None) == (place < batch.labelled)


def test_a_stopped_run_ends_as_an_uninterrupted_one(lake: Lake, whole: Path, tmp_path: Path) -> None:
    def on_step(step: int, _: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    config = settings(lake, tmp_path)
    plan = prepare_training(config, QUIET, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        train_worker(plan, Distributed(), on_step)
    assert run(config, QUIET) == 0
    assert logged(tmp_path) == logged(whole)
    expected, found = read_student(str(whole))[0].state_dict(), read_student(str(tmp_path))[0].state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_the_labels_checksum_belongs_to_the_run(lake: Lake, whole: Path) -> None:
    sha256 = AutoLabels.open(lake, "train", "hand").sha256
    assert read_student(str(whole))[1].fingerprint["auto_labels"] == sha256
    with pytest.raises(TrainingError, match=f"auto_labels {sha256} instead of"):
        run(settings(lake, whole, auto_labels="other"), QUIET)


def test_without_auto_labels_a_fingerprint_names_none(lake: Lake, tmp_path: Path) -> None:
    assert "auto_labels" not in settings(lake, tmp_path, auto_labels=None).identity(lake)


def test_without_teachers_the_other_images_take_places_of_a_batch_for_their_auto_labels_alone(
    lake: Lake, tmp_path: Path
) -> None:
    long = LoopConfig(steps=10_000)
    for name, expected in (("hand", 2), (None, 0)):
        config = settings(lake, tmp_path, auto_labels=name, unlabelled=None, loop=long)
        assert config.unlabelled_in_batch(lake) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labelled_fraction": 1.0}, "--auto-labels hand: every segment keeps its human labels"),
        ({"unlabelled": 0}, "--auto-labels hand: no image of a batch goes without human labels"),
        ({"auto_labels": "missing"}, "table autolabel_missing lacks 3 of 3 segments"),
        ({"targets": "shuffled", "unlabelled": 1}, "--targets shuffled: --auto-labels hand needs two images"),
        ({"targets": "random"}, "--targets random: expected teachers whose targets are replaced"),
    ],
)
def test_what_cannot_work_is_refused(lake: Lake, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(settings(lake, tmp_path, **changes), QUIET)


def test_a_study_trains_on_auto_labels_in_the_arms_that_say_so() -> None:
    train = TrainConfig(lake="lake", out="/out", teachers=("points=/a", "masks=/b"), auto_labels="hand")
    arms = ("none", "imitation", "autolabel", "autolabel+imitation", "autolabel-shuffled")
    study = AblateConfig(train=train, arms=arms, seeds=(0,), labelled_fractions=(0.5,))
    found = {job.arm: (job.config.auto_labels, job.config.distill, job.config.targets) for job in jobs_of(study)}
    assert found == {
        "none": (None, ("none",), "real"),
        "imitation": (None, ("imitation",), "real"),
        "autolabel": ("hand", ("none",), "real"),
        "autolabel+imitation": ("hand", ("imitation",), "real"),
        "autolabel-shuffled": ("hand", ("none",), "shuffled"),
    }
    for arm in ("autolabel-random", "autolabel+moon"):
        with pytest.raises(StudentError, match=f"unknown arm {arm.replace('+', '.')}"):
            jobs_of(replace(study, arms=(arm,)))
    with pytest.raises(StudentError, match=r"--arms autolabel: expected --train\.auto-labels NAME"):
        jobs_of(replace(study, train=replace(train, auto_labels=None)))
