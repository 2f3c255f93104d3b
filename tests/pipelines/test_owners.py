"""Every command that trains asks for its folder: a second training in it ends in one line and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from datalake.lake import Lake
from pipelines import ablate, train, train_teachers
from pipelines.train_config import TrainConfig
from pipelines.train_teachers import TrainTeachersConfig
from tests.training.test_run_lock import Owner
from training.errors import TrainingError

pytestmark = pytest.mark.integration


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Path]:
    """A folder in which another process trains."""
    folder = tmp_path / "out" / "spvcnn"
    owner = Owner(str(folder))
    yield folder
    owner.kill()


def student(lake: Lake, out: Path) -> TrainConfig:
    return TrainConfig(
        lake=lake.store.root,
        out=str(out),
        teachers=("none",),
        image_size=(96, 64),
        batch=2,
        unlabelled=0,
        min_anchor_recall=0.0,
        device="cpu",
    )


def train_student(lake: Lake, out: Path) -> None:
    train.run(student(lake, out), Console(quiet=True))


def train_teacher(lake: Lake, out: Path) -> None:
    # The lake has one split; the folder is asked for before its samples are.
    config = TrainTeachersConfig(
        lake=lake.store.root, out=str(out.parent), teacher="spvcnn", image_size=(96, 64), device="cpu"
    )
    train_teachers.run(config, Console(quiet=True))


def train_in_study(lake: Lake, out: Path) -> None:
    ablate.work(ablate.Job(arm="none", fraction=1.0, config=student(lake, out), eval_split="val", threads=1))


@pytest.mark.parametrize("training", [train_student, train_teacher, train_in_study])
def test_a_folder_in_which_another_trains_is_left_alone(
    drive_lake: Lake, owned: Path, training: Callable[[Lake, Path], None]
) -> None:
    with pytest.raises(TrainingError, match="is at work here"):
        training(drive_lake, owned)
    assert [path.name for path in owned.iterdir()] == [".owner"]
