"""Analysing runs as users do, beside each other, and what cannot be compared."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from datalake.commit import LakeError
from pipelines import train
from pipelines.analyse import AttackConfig, CorruptionsConfig, InterpretConfig, ProbeConfig, run
from pipelines.analysed_runs import METRICS_FILE, REPORT_FILE
from pipelines.train_config import TrainConfig
from student.checkpoint import read_student
from student.config import StudentError
from student.distillation.imitation import Imitation, ImitationConfig
from student.distillation.objective import LossWeights
from student.distillation.trained import read_objective
from tests.pipelines.small_teachers import admit_ignorance
from tests.teachers.cards import lidar_folder
from training.loop import LoopConfig

pytestmark = pytest.mark.integration

FRAMES = 4


@pytest.fixture(scope="module")
def folder(split_lake: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lidar teacher, a run that has learned from it, and the same run under another name."""
    folder = tmp_path_factory.mktemp("analyse")
    admit_ignorance(lidar_folder(folder / "teacher"))
    config = TrainConfig(
        lake=split_lake,
        out=str(folder / "run"),
        teachers=(f"lidar={folder / 'teacher'}",),
        weights=LossWeights(box=7.0),
        imitation=ImitationConfig(regression=3.0),
        image_size=(96, 64),
        batch=2,
        min_anchor_recall=0.0,
        loop=LoopConfig(steps=2, checkpoint_every=2, diagnose_every=1, precision="float32"),
        device="cpu",
    )
    assert train.run(config, Console(quiet=True)) == 0
    shutil.copytree(folder / "run", folder / "twin")
    return folder


@pytest.fixture(scope="module")
def attack(folder: Path, split_lake: str) -> AttackConfig:
    return AttackConfig(
        checkpoint=str(folder / "run"),
        against=(str(folder / "twin"),),
        lake=split_lake,
        teachers=(f"lidar={folder / 'teacher'}",),
        images=3,
        batch=2,
        steps=2,
        epsilons=(2.0,),
        device="cpu",
    )


def found(out: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((out / METRICS_FILE).read_text(), parse_constant=pytest.fail)
    return metrics


def test_every_loss_is_attacked_in_every_run_on_the_same_images(folder: Path, attack: AttackConfig) -> None:
    assert run(attack, Console(quiet=True)) == 0
    metrics = found(folder / "run/attack")
    assert list(metrics["runs"]) == ["run", "twin"]
    one, twin = metrics["runs"]["run"]["attack"], metrics["runs"]["twin"]["attack"]
    assert one[:-1] == twin[:-1]
    alone = ["objectness", "rpn_box", "classification", "box", "depth", "imitation/lidar"]
    assert [(row["goal"], row["epsilon"], row["steps"], row["source"]) for row in one] == [
        ("clean", 0, None, None), *((name, 4, None, None) for name in alone),
        ("sum", 2, None, None), ("sum", 4, None, None), ("noise", 2, None, None), ("noise", 4, None, None),
        ("sum", 4, 1, None), ("sum", 4, None, "twin"),
    ]  # fmt: skip
    # The twin's weights are the same, and so is what was made for it.
    assert one[-1]["metrics"] == one[8]["metrics"]
    assert {check["claim"] for check in metrics["checks"]["run"]} <= {
        "damage rises with epsilon", "4/255 breaks nearly all", "damage of 4/255 rises with the steps",
        "noise of 4/255 does little", "4/255 made for twin does less than made for this run",
    }  # fmt: skip
    clean, attacked = one[0]["metrics"], one[6]["metrics"]
    assert attacked["loss/imitation/lidar"] > clean["loss/imitation/lidar"]
    assert "loss/sum" in clean
    page = (folder / "run/attack" / REPORT_FILE).read_text()
    assert "Which loss breaks which task: twin" in page


def test_without_teachers_the_imitation_is_not_attacked(attack: AttackConfig, tmp_path: Path) -> None:
    assert run(replace(attack, against=(), teachers=("none",), out=str(tmp_path)), Console(quiet=True)) == 0
    (only,) = found(tmp_path)["runs"].values()
    assert {row["goal"] for row in only["attack"]} == {
        "clean", "objectness", "rpn_box", "classification", "box", "depth", "sum", "noise",
    }  # fmt: skip


def test_every_branch_is_ablated(folder: Path, split_lake: str, tmp_path: Path) -> None:
    config = InterpretConfig(
        checkpoint=str(folder / "run"), lake=split_lake, images=FRAMES, batch=3, out=str(tmp_path), device="cpu"
    )
    assert run(config, Console(quiet=True)) == 0
    metrics = found(tmp_path)
    (only,) = metrics["runs"].values()
    assert metrics["responses"]["run"].keys() == {"lidar", "free"}
    assert [(row["branch"], row["replacement"]) for row in only["interpret"]] == [
        (None, None),
        *((branch, way) for branch in ("free", "lidar", "all") for way in ("mean", "other image")),
    ]
    (every, *_) = metrics["attribution"]["run"]
    assert every["branches"].keys() == {"lidar", "free"}
    assert sum(every["branches"].values()) == pytest.approx(every["after"] - every["before"], abs=2e-3)
    assert [one["stride"] for one in metrics["past_branches"]["run"]] == [8, 16, 32]
    # Of both segments' times of day there are some, or of one.
    assert any(
        name.startswith("recall@100/") and name.endswith(("Day", "Night", "Dusk"))
        for name in only["interpret"][0]["metrics"]
    )
    # The training has logged the fusion's columns.
    page = (tmp_path / REPORT_FILE).read_text()
    assert "Without its branches: run" in page
    assert "A line for each branch." in page


def test_probes_stand_beside_those_of_random_weights(
    folder: Path, split_lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How well they read is not asked here.
    monkeypatch.setattr("student.evaluation.probe._STEPS", 5)
    config = ProbeConfig(
        checkpoint=str(folder / "run"),
        against=(str(folder / "twin"),),
        lake=split_lake,
        images=FRAMES,
        frames=3,
        shares=(0.3, 1.0),
        out=str(tmp_path),
        device="cpu",
    )
    assert run(config, Console(quiet=True)) == 0
    metrics = found(tmp_path)
    probes = metrics["runs"]["run"]["probe"]
    assert probes == metrics["runs"]["twin"]["probe"]
    assert list(metrics["random_weights"]) == ["random weights"]
    others = metrics["random_weights"]["random weights"]
    tasks = [(one["task"], one["share"], one["frames"]) for one in probes]
    assert tasks == [(one["task"], one["share"], one["frames"]) for one in others]
    assert {("panoptic", 0.3, 1), ("panoptic", 1.0, 3), ("depth", 1.0, 3)} <= set(tasks)
    assert probes != others
    assert "random weights" in (tmp_path / REPORT_FILE).read_text()


def test_every_corruption_is_tried_at_three_strengths(folder: Path, split_lake: str, tmp_path: Path) -> None:
    config = CorruptionsConfig(
        checkpoint=str(folder / "run"), lake=split_lake, images=2, batch=2, out=str(tmp_path), device="cpu"
    )
    assert run(config, Console(quiet=True)) == 0
    (only,) = found(tmp_path)["runs"].values()
    kinds = ("blur", "noise", "jpeg", "brightness", "fog")
    assert [(row["kind"], row["strength"]) for row in only["corruptions"]] == [
        ("clean", 0), *((kind, strength) for kind in kinds for strength in (1, 2, 3)),
    ]  # fmt: skip
    assert "What is lost: run" in (tmp_path / REPORT_FILE).read_text()


def test_the_losses_of_a_run_have_its_weights(folder: Path) -> None:
    student, checkpoint = read_student(str(folder / "run"))
    objective = read_objective(student, checkpoint)
    imitation = objective.methods["imitation"]
    assert isinstance(imitation, Imitation)
    assert (objective.weights, imitation.config) == (LossWeights(box=7.0), ImitationConfig(regression=3.0))
    assert objective.state_dict().keys() == checkpoint.objective.keys()
    assert all(torch.equal(value, checkpoint.objective[name]) for name, value in objective.state_dict().items())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"split": "train"}, LakeError, "trained on 2 segments of split train"),
        ({"teachers": ("other={folder}/teacher",)}, StudentError, "--teachers other: none of the runs has a branch"),
        ({"against": ("{folder}/run",)}, StudentError, "a run is given twice"),
        ({"images": 0}, LakeError, "--images 0: expected at least 1"),
        ({"epsilons": (0.0,)}, LakeError, "--epsilons 0: expected more than 0"),
    ],
)
def test_what_means_nothing_is_refused(
    folder: Path, attack: AttackConfig, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {
        name: tuple(one.format(folder=folder) if isinstance(one, str) else one for one in value)
        if isinstance(value, tuple)
        else value
        for name, value in change.items()
    }
    with pytest.raises(error, match=message):
        run(replace(attack, **given), Console(quiet=True))
