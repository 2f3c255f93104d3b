"""A trunk of timm's from given weights to the exported student, and images of the size that it is for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from rich.console import Console
from torch import nn
from torchvision.models import resnet18

from datalake.build import BuildConfig
from datalake.synthetic import DriveConfig, write_drives
from pipelines import evaluate, train
from pipelines.evaluate import METRICS_FILE, REPORT_FILE, EvaluateConfig
from pipelines.train_config import TrainConfig, read_preset
from pipelines.train_setup import prepare_training
from pipelines.trunk_weights import weights_sha256
from student.checkpoint import read_student
from student.config import StudentConfig, StudentError
from student.export import load_exported
from student.model_card import MODEL_CARD_FILE
from student.timm_trunk import TimmTrunk
from teachers.loading import is_detector
from tests.lakes import build_files
from training.distributed import Distributed
from training.errors import TrainingError
from training.loop import LoopConfig
from training.metrics_log import read_history
from training.run_dir import RunDir

pytestmark = pytest.mark.integration

QUIET = Console(quiet=True)


class Killed(Exception):  # noqa: N818 - it is no error of the training
    """What ends a run after its first step."""


def settings(lake: str, folder: Path) -> TrainConfig:
    """Return a run of two steps from the weights in the folder, whose first stages are frozen."""
    student = StudentConfig(
        trunk="timm:resnet18", trunk_weights=str(folder / "weights.pth"), trunk_weights_license="BSD-3-Clause",
        freeze_stages=2, width=16, branch_width=8, head_width=32,
    )  # fmt: skip
    return TrainConfig(
        lake=lake,
        out=str(folder / "run"),
        student=student,
        image_size=(96, 64),
        batch=2,
        min_anchor_recall=0.0,
        loop=LoopConfig(steps=2, checkpoint_every=1, precision="float32", accumulate=2),
        device="cpu",
    )


def write_weights(path: Path, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = resnet18(weights=None)
    torch.save(network.state_dict(), path)
    return network


def stop(_step: int, _metrics: Mapping[str, float]) -> None:
    raise Killed


@pytest.fixture(scope="module")
def trained(split_lake: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, str]:
    """The folder of a run that was killed after a step and went on when its weights' file was gone.

    With what the file held, and what the run said.
    """
    folder = tmp_path_factory.mktemp("given")
    network = write_weights(folder / "weights.pth", 1)
    console = Console(width=200, record=True, file=(folder / "printed").open("w"))
    config = settings(split_lake, folder)
    with pytest.raises(Killed):
        train.train_worker(prepare_training(config, console, lambda *_: None), Distributed(), stop)
    (folder / "weights.pth").rename(folder / "elsewhere.pth")
    assert train.run(config, console) == 0
    return folder, network, console.export_text()


def test_frozen_stages_are_those_of_the_file_and_the_others_have_learned(trained: tuple[Path, nn.Module, str]) -> None:
    folder, network, _ = trained
    trunk = read_student(str(folder / "run"))[0].backbone.trunk
    assert isinstance(trunk, TimmTrunk)
    own, given = trunk.network.state_dict(), network.state_dict()
    assert torch.equal(own["layer2.0.conv1.weight"], given["layer2.0.conv1.weight"])
    # Near it, but not the same.
    assert not torch.equal(own["layer3.0.conv1.weight"], given["layer3.0.conv1.weight"])
    torch.testing.assert_close(own["layer3.0.conv1.weight"], given["layer3.0.conv1.weight"], rtol=0, atol=0.01)


def test_a_study_knows_the_checksum_of_weights_that_are_gone(trained: tuple[Path, nn.Module, str]) -> None:
    folder = trained[0]
    sha256 = hashlib.sha256((folder / "elsewhere.pth").read_bytes()).hexdigest()
    assert weights_sha256(str(folder / "elsewhere.pth"), str(folder / "nowhere")) == sha256
    assert weights_sha256(str(folder / "weights.pth"), str(folder / "run")) == sha256
    with pytest.raises(StudentError, match=r"--student\.trunk-weights .*weights\.pth: no such file"):
        weights_sha256(str(folder / "weights.pth"), str(folder / "nowhere"))


def test_log_and_fingerprint_have_the_checksum(trained: tuple[Path, nn.Module, str]) -> None:
    folder, _, told = trained
    sha256 = hashlib.sha256((folder / "elsewhere.pth").read_bytes()).hexdigest()
    assert f"sha256 {sha256}; no place for fc" in told
    assert "is gone; the run goes on" in told
    _, checkpoint = read_student(str(folder / "run"))
    assert checkpoint.fingerprint["student.trunk_weights_sha256"] == sha256
    assert str(folder / "weights") not in checkpoint.config + str(checkpoint.fingerprint)
    assert len(read_history(RunDir(str(folder / "run")))) == 2


def test_other_weights_do_not_continue_it(trained: tuple[Path, nn.Module, str], split_lake: str) -> None:
    folder = trained[0]
    config = settings(split_lake, folder)
    write_weights(folder / "other.pth", 2)
    other = replace(config, student=replace(config.student, trunk_weights=str(folder / "other.pth")))
    with pytest.raises(TrainingError, match=r"other settings .* student\.trunk_weights_sha256 \w+ instead of \w+"):
        train.run(other, QUIET)


def test_missing_weights_and_those_of_another_model_are_refused_before_the_run_starts(
    split_lake: str, tmp_path: Path
) -> None:
    config = settings(split_lake, tmp_path)
    with pytest.raises(StudentError, match=r"--student\.trunk-weights .*weights\.pth: no such file$"):
        train.run(config, QUIET)
    torch.save({"layer.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(StudentError, match=r"weights\.pth: not the weights of timm's resnet18: layer\.weight are none"):
        train.run(config, QUIET)
    small = replace(config, student=StudentConfig(), recompute_activations=True)
    with pytest.raises(StudentError, match="--recompute-activations: expected a trunk of timm's, got: fpn"):
        train.run(small, QUIET)
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_an_exported_student_has_a_card_of_data_classes_trunk_and_licence(
    trained: tuple[Path, nn.Module, str], split_lake: str
) -> None:
    folder = trained[0]
    config = EvaluateConfig(
        checkpoint=str(folder / "run"), lake=split_lake, out=str(folder / "exported"), export=True, device="cpu"
    )
    assert evaluate.run(config, QUIET) == 0
    card = json.loads((folder / "exported" / MODEL_CARD_FILE).read_text())
    metrics = json.loads((folder / "exported" / METRICS_FILE).read_text())["metrics"]
    assert card["metrics"] == metrics
    assert card["classes"] == ["VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST"]
    sha256 = hashlib.sha256((folder / "elsewhere.pth").read_bytes()).hexdigest()
    assert card["trunk"] == {
        "name": "timm:resnet18",
        "weights_sha256": sha256,
        "weights_license": "BSD-3-Clause",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    assert (card["trained"]["steps"], card["trained"]["split"], card["evaluated"]["split"]) == (2, "train", "val")
    # It can still be a detector teacher.
    assert is_detector(str(folder / "exported"))
    again = load_exported(str(folder / "exported"))
    assert again.config == read_student(str(folder / "run"))[0].config


def test_the_preset_for_large_images_trains(split_lake: str, tmp_path: Path) -> None:
    rest, default = read_preset(
        ["--preset", "resnet50", "--lake", split_lake, "--out", str(tmp_path / "run"), "--image-size", "96", "64",
         "--batch", "2", "--min-anchor-recall", "0", "--loop.steps", "1", "--recompute-activations",
         "--device", "cpu"]
    )  # fmt: skip
    assert train.run(tyro.cli(TrainConfig, args=rest, default=default), QUIET) == 0
    (line,) = read_history(RunDir(str(tmp_path / "run")))
    assert all(math.isfinite(value) for value in line.values())
    assert read_student(str(tmp_path / "run"))[0].config.trunk == "timm:resnet50"


def test_images_of_960_by_640_go_from_the_build_to_the_report(tmp_path: Path) -> None:
    drives = DriveConfig(image_width=960, image_height=640, beams=16, columns=120, cameras=("FRONT",))
    for split, seed in (("train", 1), ("val", 2)):
        sources = write_drives(str(tmp_path / split), drives, segments=1, frames=1, seed=seed)
        build_files(str(tmp_path / "lake"), sources, BuildConfig(split=split, cameras=("FRONT",)))
    config = TrainConfig(
        lake=str(tmp_path / "lake"),
        out=str(tmp_path / "run"),
        image_size=(960, 640),
        batch=1,
        loop=LoopConfig(steps=2, precision="float32"),
        device="cpu",
    )
    assert train.run(config, QUIET) == 0
    assert evaluate.run(EvaluateConfig(checkpoint=config.out, lake=config.lake, device="cpu"), QUIET) == 0
    report = tmp_path / "run/evaluation" / REPORT_FILE
    assert "960 x 640" in report.read_text()
