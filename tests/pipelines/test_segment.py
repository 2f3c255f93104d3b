"""Clusters of features as users measure them: a pre-trained trunk, and a student, beside all baselines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from datalake.commit import LakeError
from pipelines import pretrain, segment, train
from pipelines.segment import CEILING, COLORS, MEAN, RANDOM, TILES, SegmentConfig
from student.config import StudentError
from student.evaluation.segmentation import ClusterConfig
from tests.pipelines.test_pretrain import settings, student_run
from tests.support.programs import Call

pytestmark = pytest.mark.integration

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def runs(split_lake: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a pre-training and of a student's training."""
    folder = tmp_path_factory.mktemp("runs")
    pretrain.run(settings(split_lake, folder / "byol"), QUIET)
    train.run(student_run(split_lake, folder / "student", None), QUIET)
    return {"byol": folder / "byol", "student": folder / "student"}


def config(lake: str, runs: dict[str, Path], out: Path) -> SegmentConfig:
    return SegmentConfig(
        lake=lake,
        out=str(out),
        runs=tuple(f"{name}={folder}" for name, folder in runs.items()),
        images=3,
        fit_images=3,
        image_size=(96, 64),
        truth_size=(96, 64),
        least_pixels=10,
        cluster=ClusterConfig(clusters=4, most=5, class_clusters=(8, 12), class_cells=600, restarts=1),
        components=(2,),
        draws=20,
        device="cpu",
    )


@pytest.fixture(scope="module")
def measured(split_lake: str, runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segmented")
    assert segment.run(config(split_lake, runs, out), QUIET) == 0
    return out


def test_all_baselines_stand_beside_the_runs_and_none_beats_the_ceiling(measured: Path) -> None:
    metrics = json.loads((measured / "metrics.json").read_text())["metrics"]
    assert set(metrics) == {"byol", "student", RANDOM, COLORS, TILES, CEILING, MEAN}
    for name in ("byol", "student", RANDOM, COLORS, TILES):
        for metric in ("A@4/iou", "B@2/oracle", "C@8/miou"):
            assert 0 <= metrics[name][metric]["value"] <= metrics[CEILING][metric]["value"] <= 1, (name, metric)
            assert metrics[name][metric]["low"] <= metrics[name][metric]["high"]
    assert metrics["byol"]["A@4/iou"] != metrics[RANDOM]["A@4/iou"]


def test_runs_are_compared_with_random_weights_and_with_colors(measured: Path) -> None:
    found = json.loads((measured / "metrics.json").read_text())
    assert set(found["above"]) == {RANDOM, COLORS}
    gain = found["above"][RANDOM]["byol"]["A@4/iou"]["value"]
    metrics = found["metrics"]
    assert gain == pytest.approx(metrics["byol"]["A@4/iou"]["value"] - metrics[RANDOM]["A@4/iou"]["value"])
    assert found["features"]["byol"]["effective_rank"] > 1


def test_the_page_shows_maps_knees_and_components(measured: Path) -> None:
    page = (measured / "report.html").read_text()
    assert page.count("image/jpeg") == 3
    assert page.count("image/png") == 1


def test_the_same_again_is_the_same(split_lake: str, runs: dict[str, Path], measured: Path, tmp_path: Path) -> None:
    segment.run(config(split_lake, runs, tmp_path), QUIET)
    found, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, measured))
    assert found["metrics"] == expected["metrics"]


def test_a_split_that_a_run_has_seen_is_refused(split_lake: str, runs: dict[str, Path], tmp_path: Path) -> None:
    seen = replace(config(split_lake, runs, tmp_path), split="train", fit_split="val")
    with pytest.raises(LakeError, match="was trained on 2 segments of split train"):
        segment.run(seen, QUIET)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--runs", "one"], "expected NAME=FOLDER"),
        (["--runs", "one=/nowhere/at/all"], "no such checkpoint"),
        (["--runs", "tiles=/nowhere"], "the name is taken"),
        (["--split", "train"], "more are in both splits"),
        (["--cluster.clusters", "13"], "expected at most --cluster.most, 12"),
    ],
)
def test_bad_arguments_give_status_2_and_one_line(
    split_lake: str, tmp_path: Path, more: list[str], message: str, call: Call
) -> None:
    given = ["--lake", split_lake, "--out", str(tmp_path / "out"), "--runs", "one=/nowhere", *more]
    assert message in call.refused(segment.main, given)
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_trunk_of_that_grid_is_refused(split_lake: str, runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="that are multiples of 32"):
        segment.run(replace(config(split_lake, runs, tmp_path), image_size=(90, 64)), QUIET)
