"""The tutorial: its cells run, and what it shows is theirs."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image
from rich.console import Console

from pipelines import train_teachers
from pipelines.train_teachers import TrainTeachersConfig
from teachers.card import read_card, write_card
from tests.support.data import ROOT
from tests.support.notebook import checksum, code_cells, run_notebook

NOTEBOOK = ROOT / "docs/tutorial.ipynb"
SMALL = {
    "SEGMENTS": {"teach": 1, "train": 3, "val": 1},
    "FRAMES": 2,
    "TEACHER_STEPS": {"spvcnn": 2, "mask_rcnn": 2},
    "STUDENT_STEPS": 2,
    "IMAGE_SIZE": (192, 128),
}


@pytest.mark.integration
def test_every_cell_runs_up_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    train = train_teachers.run

    def train_briefly(config: TrainTeachersConfig, console: Console) -> int:
        """Let the cards promise nothing: after two steps a teacher is as accurate as chance has it."""
        status, folder = train(config, console), f"{config.out}/{config.teacher}"
        card = read_card(folder)
        write_card(folder, replace(card, metrics=dict.fromkeys(card.metrics, 0.0)))
        return status

    monkeypatch.setattr(train_teachers, "run", train_briefly)
    try:
        run_notebook(NOTEBOOK, SMALL)
        # The frame, samples with their points, the teachers' maps, the losses, the frame with detections.
        assert len(plt.get_fignums()) == 5
    finally:
        plt.close("all")
    (out,) = tmp_path.glob("tutorial-*")
    assert len((out / "student/history.jsonl").read_text().splitlines()) == SMALL["STUDENT_STEPS"]
    metrics = json.loads((out / "student/evaluation/metrics.json").read_text())
    assert metrics["evaluated"]["image_size"] == [192, 128]
    assert (out / "student/evaluation/report.html").stat().st_size


def test_the_outputs_that_it_shows_are_of_its_cells() -> None:
    cells = code_cells(NOTEBOOK)
    assert json.loads(NOTEBOOK.read_text())["metadata"]["executed_sha256"] == checksum(cells)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    pictures = [output["data"]["image/jpeg"] for output in outputs if "image/jpeg" in output.get("data", {})]
    assert len(pictures) == 5
    for picture in pictures:
        assert min(Image.open(io.BytesIO(base64.b64decode(picture))).size) > 100
