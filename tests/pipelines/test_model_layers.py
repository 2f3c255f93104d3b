"""Recordings and drawings with what a student and its teachers say of the frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from datalake.__main__ import main
from datalake.lake import open_lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.show import draw_frame
from pipelines.model_layers import model_layers
from student.checkpoint import read_student
from student.config import BranchSpec
from teachers.card import read_card
from tests.pipelines.test_detector_teachers import run_of, write_run
from tests.student.students import TINY
from tests.support.programs import Call
from tests.support.recordings import logged_rows, logged_values

FRAMES, SIZE = 4, (128, 96)


@pytest.fixture(scope="module")
def run(split_lake: str, two_teachers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student that is sure of everything, with a branch for each teacher."""
    branches = tuple(BranchSpec.of(name, read_card(url)) for name, url in two_teachers.items())
    config = replace(TINY, branches=branches, min_score=0.0)
    return write_run(tmp_path_factory.mktemp("run"), run_of(open_lake(split_lake), image_size=str(SIZE)), config)


def test_detections_and_maps_stand_beside_each_frame(
    split_lake: str, two_teachers: dict[str, str], run: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.model_layers._MIN_SCORE", 0.0)
    out = tmp_path / "scene.rrd"
    teachers = [f"{name}={url}" for name, url in two_teachers.items()]
    words = ["view", "--lake", split_lake, "--split", "val", "--out", str(out), "--run", run, "--teachers", *teachers]
    status, printed, errors = call(main, words)
    assert (status, errors) == (0, "")
    assert f"{FRAMES} frames" in printed
    logged = logged_rows(out)
    for name in two_teachers:
        for what in ("target", "student"):
            assert logged[f"/maps/FRONT/{name}/{what}"] == FRAMES
    assert logged["/vehicle/FRONT/image"] == logged["/vehicle/FRONT/detections"] == FRAMES

    student, _ = read_student(run)
    loader = LoaderConfig(split="val", image_size=SIZE, points=False, global_batch=FRAMES, shuffle=False)
    (batch,) = SampleStream(open_lake(split_lake), loader).loader()
    with torch.no_grad():
        found = student.predict(torch.stack([sample.image for sample in batch])).detections
    centers = logged_values(out, "/vehicle/FRONT/detections", "Boxes2D:centers")
    assert sorted(centers) == list(range(FRAMES))
    for frame, theirs in enumerate(found):
        # The records' images have 96 x 64 pixels.
        expected = (theirs.boxes[:, :2] + theirs.boxes[:, 2:]) / 2 * torch.tensor([96 / 128, 64 / 96])
        np.testing.assert_allclose(centers[frame], expected, atol=1e-2)


def test_show_draws_detections_and_a_row_of_maps(
    split_lake: str, two_teachers: dict[str, str], run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.model_layers._MIN_SCORE", 0.0)
    lake = open_lake(split_lake)
    (segment,) = (commit.segment for commit in lake.in_split("val"))
    layers = model_layers(run, [f"{name}={url}" for name, url in two_teachers.items()], "val")
    plain, figure = (draw_frame(lake, "val", segment, 2, "FRONT", asked) for asked in (None, layers))
    titles = [axes.get_title() for axes in figure.axes]
    assert [f"{name}/{what}" for name in two_teachers for what in ("target", "student")] == titles[-4:]
    times = sorted(lake.images(["timestamp_us"], "val").column(0).to_pylist())
    (told,) = layers(lake.where(f"timestamp_us = {times[2]}", "val"))
    assert told.boxes is not None
    drawn = [len(each.axes[0].patches) for each in (figure, plain)]
    assert drawn[0] - drawn[1] == len(told.boxes) > 0
    plt.close("all")


def test_a_run_or_teacher_that_is_not_there_is_told_in_one_line(split_lake: str, tmp_path: Path, call: Call) -> None:
    words = ["view", "--lake", split_lake, "--split", "val", "--out", str(tmp_path / "scene.rrd")]
    assert "no such checkpoint" in call.refused(main, [*words, "--run", str(tmp_path / "none")])
    assert "expected NAME=FOLDER" in call.refused(main, [*words, "--teachers", "lidar"])
    assert not list(tmp_path.iterdir())
