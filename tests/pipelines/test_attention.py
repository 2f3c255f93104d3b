"""What heads look at, as users see it: of a pre-training, of published weights, and of random ones."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pipelines import attention, pretrain
from pipelines.attention import AttentionConfig
from student.pretraining.vit import Vit, VitConfig
from tests.pipelines.test_pretrain import settings
from tests.support.programs import Call

pytestmark = pytest.mark.integration

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def run(split_lake: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a transformer's pre-training."""
    out = tmp_path_factory.mktemp("vit") / "run"
    config = settings(split_lake, out)
    vit = VitConfig(dimensions=16, blocks=1, heads=2, patch=8, size=(64, 32))
    config = replace(config, method="dino", dino=replace(config.dino, network="vit", vit=vit))
    assert pretrain.run(replace(config, loop=replace(config.loop, steps=2)), QUIET) == 0
    return out


def test_heads_of_runs_and_of_published_weights_stand_beside_random_ones(
    split_lake: str, run: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    published = Vit(VitConfig(dimensions=64, blocks=1, heads=1, patch=16, size=(32, 32)))
    teacher = {f"backbone.{name}": value for name, value in published.network.state_dict().items()}
    # As DINO's training writes it.
    checkpoint = {"student": {}, "teacher": teacher, "epoch": 3, "args": argparse.Namespace(arch="vit_small")}
    torch.save(checkpoint, tmp_path / "w.pth")
    config = AttentionConfig(
        lake=split_lake,
        out=str(tmp_path / "out"),
        runs=(f"own={run}",),
        weights=(f"published={tmp_path / 'w.pth'}",),
        images=3,
        fit_images=3,
        image_size=(96, 64),
        truth_size=(96, 64),
        least_pixels=10,
        draws=20,
        device="cpu",
    )
    assert attention.run(config, QUIET) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    names = {"own", "published", "own, random weights", "published, random weights"}
    assert set(metrics) == names
    for name in names:
        assert metrics[name]["one head"]["value"] <= metrics[name]["best head"]["value"] + 1e-9
    assert metrics["own"] != metrics["own, random weights"]
    assert (tmp_path / "out" / "report.html").read_text().count("image/jpeg") == 3 * len(names)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "expected --runs or --weights"),
        (["--weights", "file"], "--weights file: expected NAME=PLACE"),
        (["--runs", "one=/nowhere/at/all"], "no such checkpoint"),
    ],
)
def test_bad_arguments_give_status_2_and_one_line(
    split_lake: str, tmp_path: Path, more: list[str], message: str, call: Call
) -> None:
    assert message in call.refused(attention.main, ["--lake", split_lake, "--out", str(tmp_path / "out"), *more])


def test_a_trunk_has_no_attention(split_lake: str, tmp_path: Path, call: Call) -> None:
    assert pretrain.run(settings(split_lake, tmp_path / "byol"), QUIET) == 0
    given = ["--lake", split_lake, "--out", str(tmp_path / "out"), "--runs", f"byol={tmp_path / 'byol'}"]
    assert "a trunk, which has no attention" in call.refused(attention.main, given)
