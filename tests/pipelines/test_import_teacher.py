"""Published weights become a teacher's folder that any training takes."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from datalake.lake import Lake
from datalake.loader import LoaderConfig, SampleStream
from pipelines.detector_teachers import prepare_detectors, read_detector
from pipelines.import_teacher import main
from pipelines.train_config import TrainConfig
from pipelines.train_setup import prepare_training
from student.distillation.kd import KDConfig
from student.distillation.torchvision_detector import TorchvisionDetector
from teachers.card import TeacherError, read_card
from teachers.load import load_teacher
from teachers.mask_rcnn.teacher import MaskRcnnConfig, build_network
from tests.student.students import TINY


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """Return the command's exit status."""
    monkeypatch.setattr(sys, "argv", ["import_teacher.py", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_spvnas_of_its_authors_says_numbers_of_mean_0_and_variance_1(
    real_data: Path,
    public_state: dict[str, Tensor],
    drive_lake: Lake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.save({"model": public_state}, tmp_path / "init")
    status = run(
        monkeypatch, "spvnas", "--weights", str(tmp_path / "init"), "--out", str(tmp_path / "teacher"),
        "--net-config", str(real_data / "spvnas_65gmacs_net_config.json"), "--lake", drive_lake.store.root,
        "--samples", "3", "--image-size", "96", "64", "--device", "cpu",
    )  # fmt: skip
    assert status == 0
    config = LoaderConfig(global_batch=1, image_size=(96, 64))
    samples = list(itertools.islice(SampleStream(drive_lake, config), 3))
    target = load_teacher(str(tmp_path / "teacher")).predict(samples, 64, 96)
    branch_outputs = target.values.permute(0, 2, 3, 1)[target.valid[:, 0]]
    assert branch_outputs.shape[1] == 76
    # A channel that never changes stays 0.
    speaks = branch_outputs.var(0) > 0
    assert speaks.float().mean() > 0.9
    torch.testing.assert_close(branch_outputs.mean(0), torch.zeros(76), rtol=0, atol=1e-3)
    torch.testing.assert_close(branch_outputs.var(0)[speaks], torch.ones(int(speaks.sum())), rtol=0, atol=1e-2)


def test_mask_rcnn_of_torchvision_is_a_teacher_of_our_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = build_network(MaskRcnnConfig.coco("v2")).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    words = ["mask-rcnn", "--weights", str(tmp_path / "weights.pth"), "--out", str(tmp_path / "teacher")]
    assert run(monkeypatch, *words) == 0
    teacher = load_teacher(str(tmp_path / "teacher"))
    assert read_card(str(tmp_path / "teacher")).class_names[1] == "VEHICLE"
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_faster_rcnn_of_torchvision_is_a_detector_teacher(
    drive_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    out = str(tmp_path / "teacher")
    words = ["detector", "--weights", str(tmp_path / "weights.pth"), "--out", out]
    assert run(monkeypatch, *words, "--network", "fasterrcnn_resnet50_fpn") == 0
    opened = read_detector("coco", out)
    assert opened.card is not None
    assert opened.teacher.weights_sha256 == opened.card.weights_sha256 == read_card(out).weights_sha256
    image = torch.rand(1, 3, 64, 96)
    own = TorchvisionDetector.load("fasterrcnn_resnet50_fpn", network.state_dict(), "here").eval()
    torch.testing.assert_close(opened.teacher.predict(image).pyramid, own.features(image).pyramid, rtol=0, atol=0)

    written = tmp_path / "console"
    with written.open("w") as file:
        prepare_detectors({"coco": out}, TINY, (96, 64), drive_lake, frozenset(), Console(file=file))
    said = "teacher coco: a detector of width 256, imported, so nobody can tell whose labels it has seen"
    assert written.read_text().strip() == said

    asked = TrainConfig(lake=drive_lake.store.root, out=str(tmp_path / "run"), teachers=(f"coco={out}",))
    asked = replace(asked, distill=("kd",), kd=KDConfig(depth=1.0), student=TINY, image_size=(96, 64), batch=2)
    with pytest.raises(TeacherError, match=r"--kd\.depth: teacher coco is torchvision's and knows no depths; leave"):
        prepare_training(asked, Console(quiet=True), lambda *_: None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["detector", "--weights", "{}/none.pth", "--out", "{}/teacher"], "none.pth"),
        (["mask-rcnn", "--weights", "{}/none.pth", "--out", "{}/teacher"], "none.pth"),
        (
            ["spvnas", "--weights", "{}/none", "--net-config", "{}/none", "--out", "{}/teacher", "--lake", "{}"],
            "no lake here",
        ),
    ],
)
def test_what_cannot_be_imported_is_said_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *(word.format(tmp_path) for word in words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("import_teacher: ")
    assert message in line
    assert not (tmp_path / "teacher").exists()
