"""A detector teacher from a lake's labels: trained, evaluated, described by a card, and taken by a student."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import save_file

from datalake.commit import LakeError
from datalake.lake import open_lake
from pipelines import train
from pipelines.detector_teachers import prepare_detectors, read_detector
from pipelines.train_config import TrainConfig
from pipelines.train_detector import DetectorTrainConfig
from pipelines.train_teachers import TrainTeachersConfig, run
from student.detections import CLASS_NAMES
from student.export import WEIGHTS_FILE, load_exported, weights_file
from teachers.card import TeacherError, read_card, write_card
from teachers.loading import is_detector, read_cards
from tests.student.students import TINY, build
from training.loop import LoopConfig
from training.metrics_log import HISTORY_FILE
from training.run_dir import RunDir

pytestmark = pytest.mark.integration

SIZE, STEPS = (96, 64), 2
SHORT = LoopConfig(steps=STEPS, precision="float32")


def settings(lake: str, out: Path) -> TrainTeachersConfig:
    """Return a training of two steps."""
    detector = DetectorTrainConfig(student=replace(TINY, width=24), batch=2, min_anchor_recall=0.0, loop=SHORT)
    return TrainTeachersConfig(
        lake=lake, out=str(out), teacher="detector", image_size=SIZE, device="cpu", detector=detector, eval_samples=3
    )


@pytest.fixture(scope="module")
def teacher(split_lake: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a detector that was trained on the split teach. Read only."""
    out = tmp_path_factory.mktemp("teachers")
    assert run(settings(split_lake, out), Console(quiet=True)) == 0
    return str(out / "detector")


def test_its_card_says_what_it_is_and_whose_labels_it_has_seen(split_lake: str, teacher: str) -> None:
    card = read_card(teacher)
    assert (card.kind, card.channels, card.class_names) == ("detector", 24, CLASS_NAMES)
    assert card.data is not None
    assert card.data.image_size == SIZE
    lake = open_lake(split_lake)
    assert card.data.segments == {"teach": tuple(sorted(commit.segment for commit in lake.in_split("teach")))}
    assert {"AP50", "AP", "recall@100", "training/seconds"} <= card.metrics.keys()
    assert card.metrics["training/steps"] == STEPS


def test_its_folder_is_a_detectors_and_has_no_map(teacher: str) -> None:
    assert is_detector(teacher)
    with pytest.raises(TeacherError, match="a detector, which no branch imitates"):
        read_cards({"big": teacher})


def test_a_student_learns_from_it(split_lake: str, teacher: str, tmp_path: Path) -> None:
    config = TrainConfig(
        lake=split_lake,
        out=str(tmp_path / "run"),
        teachers=(f"big={teacher}",),
        distill=("fitnet",),
        student=TINY,
        image_size=SIZE,
        batch=2,
        min_anchor_recall=0.0,
        device="cpu",
        loop=SHORT,
    )
    said = tmp_path / "said"
    with said.open("w") as file:
        assert train.run(config, Console(file=file)) == 0
    assert "teacher big: a detector of width 24, AP50 0." in said.read_text()
    assert "2 steps with the labels of 2 segments of teach of" in said.read_text()
    assert "loss/fitnet/big" in (tmp_path / "run" / HISTORY_FILE).read_text()


def test_it_does_not_teach_a_student_from_whom_its_labels_are_kept(split_lake: str, teacher: str) -> None:
    lake = open_lake(split_lake)
    hidden = frozenset(commit.segment for commit in lake.in_split("teach"))
    with pytest.raises(TeacherError, match="teacher big has learned from the labels of 2 segments that the student"):
        prepare_detectors({"big": teacher}, TINY, SIZE, lake, hidden, Console(quiet=True))


def test_weights_of_another_detector_beside_a_card_are_refused(teacher: str, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "detector")
    RunDir(str(tmp_path / "detector")).write(WEIGHTS_FILE, weights_file(build(TINY)))
    with pytest.raises(TeacherError, match=r"teacher big: .*student\.safetensors: the weights are not those that card"):
        read_detector("big", str(tmp_path / "detector"))


def test_a_detector_whose_configuration_lacks_a_newer_setting_still_teaches(teacher: str, tmp_path: Path) -> None:
    url = str(tmp_path / "detector")
    shutil.copytree(teacher, url)
    student = load_exported(url)
    older = json.loads(student.config.to_json())
    del older["freeze_stages"]
    save_file(dict(student.state_dict()), Path(url) / WEIGHTS_FILE, {"config": json.dumps(older)})
    sha256 = hashlib.sha256((Path(url) / WEIGHTS_FILE).read_bytes()).hexdigest()
    write_card(url, replace(read_card(url), weights_sha256=sha256))
    assert read_detector("big", url).teacher.weights_sha256 == sha256


def test_it_is_not_evaluated_on_what_it_was_trained_on(split_lake: str, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="are in both splits, teach and teach"):
        run(replace(settings(split_lake, tmp_path), eval_split="teach"), Console(quiet=True))
    assert not list(tmp_path.rglob(HISTORY_FILE))
