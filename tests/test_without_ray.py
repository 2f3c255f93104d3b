"""What runs where torch and Ray are not installed, and what needs no protocol buffers."""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path

import pytest

from datalake.lake import Lake, open_lake
from tests.pipelines.small_teachers import admit_ignorance, write_teachers
from tests.without_ray import run_without
from training.checkpoint import CHECKPOINT_FILE

pytestmark = pytest.mark.integration


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def test_a_reader_and_a_network_are_imported_without_ray_and_protocol_buffers(empty: Path) -> None:
    program = "import datalake.loader, student.detector, teachers.spvnas.teacher, teachers.mask_rcnn.teacher"
    done = run_without(("ray", "google", "waymo_open_dataset"), empty, ["-c", program])
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_is_imported_without_ray(empty: Path) -> None:
    names = ["ablate", "build_lake", "cache_targets", "demo", "evaluate", "import_teacher", "train", "train_teachers"]
    program = f"from pipelines import {', '.join(names)}; import datalake.__main__, datalake.synthetic.__main__"
    done = run_without(("ray",), empty, ["-c", program])
    assert (done.returncode, done.stderr) == (0, "")


def test_a_local_build_and_a_training_on_it_with_teachers_need_no_ray(
    drive_sources: list[str], drive_lake: Lake, empty: Path, tmp_path: Path
) -> None:
    lake, out = tmp_path / "lake", tmp_path / "out"
    words = ["pipelines/build_lake.py", "--local", "--source", *drive_sources, "--lake", str(lake)]
    built = run_without(("ray",), empty, [*words, "--cameras", "FRONT", "FRONT_LEFT"])
    assert built.returncode == 0, built.stderr
    files = [[one.files for one in it.commits] for it in (open_lake(str(lake)), drive_lake)]
    assert files[0] == files[1]

    teachers = write_teachers(tmp_path / "teachers")
    for url in teachers.values():
        admit_ignorance(url)
    words = ["pipelines/train.py", "--lake", str(lake), "--out", str(out), "--teachers"]
    words += [f"{name}={url}" for name, url in teachers.items()]
    words += ["--image-size", "96", "64", "--batch", "2", "--min-anchor-recall", "0", "--loop.steps", "2"]
    trained = run_without(("ray",), empty, [*words, "--loop.warmup", "0"])
    assert trained.returncode == 0, trained.stderr
    assert [json.loads(line)["step"] for line in (out / "history.jsonl").read_text().splitlines()] == [0, 1]
    assert (out / CHECKPOINT_FILE).exists()


LOOK = """
import sys
import duckdb
from datalake import open_lake
from datalake.__main__ import main
lake, out = sys.argv[1:]
for words in (
    ["info"], ["verify", "--decode"], ["show", "--out", f"{out}/frame.png"],
    ["export", "coco", "--split", "train", "--out", f"{out}/coco"], ["view", "--out", f"{out}/scene.rrd"],
):
    sys.argv = ["datalake", *words, "--lake", lake]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
label = open_lake(lake).dataset("label", split="train")
print("types", dict(duckdb.sql("SELECT type, count(*) FROM label GROUP BY type").fetchall()))
"""


def test_a_lake_is_built_and_looked_at_without_torch_and_ray(
    drive_sources: list[str], drive_lake: Lake, empty: Path, tmp_path: Path
) -> None:
    lake = str(tmp_path / "lake")
    absent = ("torch", "torchvision", "ray", "safetensors", "tensorboard", "pycocotools")
    words = ["-m", "datalake", "build", "--source", *drive_sources, "--lake", lake, "--cameras", "FRONT", "FRONT_LEFT"]
    built = run_without(absent, empty, words)
    assert built.returncode == 0, built.stderr
    assert [one.files for one in open_lake(lake).commits] == [one.files for one in drive_lake.commits]
    looked = run_without(absent, empty, ["-c", LOOK, lake, str(tmp_path)])
    assert (looked.returncode, looked.stderr) == (0, "")
    assert " 0 problems" in looked.stdout
    types = Counter(drive_lake.scan("label", ["type"]).to_table()["type"].to_pylist())
    assert ast.literal_eval(looked.stdout.splitlines()[-1].removeprefix("types ")) == types
    for name in ("frame.png", "scene.rrd", "coco/annotations/instances_train.json"):
        assert (tmp_path / name).stat().st_size


@pytest.mark.parametrize(
    "words",
    [
        ["pipelines/train.py", "--help"],
        ["-m", "datalake", "show", "--lake", "{lake}", "--teachers", "masks=/nowhere", "--out", "{out}"],
    ],
    ids=["train", "show"],
)
def test_what_computes_with_torch_says_in_one_line_that_it_is_missing(
    words: list[str], drive_lake: Lake, empty: Path, tmp_path: Path
) -> None:
    known = {"lake": drive_lake.store.url, "out": str(tmp_path / "frame.png")}
    done = run_without(("torch", "torchvision"), empty, [word.format(**known) for word in words])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("needs torch, torchvision, not installed here: pip install 'classroomnet[train]'")


def test_a_build_says_in_one_line_that_the_protocol_buffers_are_missing(
    drive_sources: list[str], empty: Path, tmp_path: Path
) -> None:
    words = ["-m", "datalake", "build", "--source", *drive_sources, "--lake", str(tmp_path / "lake")]
    done = run_without(("waymo_open_dataset",), empty, words)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "pip install --no-deps waymo-open-dataset-tf-2-12-0==" in line


@pytest.mark.parametrize(
    "words",
    [
        ["pipelines/build_lake.py", "--source", "{source}", "--lake", "{out}"],
        ["pipelines/train.py", "--lake", "{lake}", "--out", "{out}", "--workers", "2", "--min-anchor-recall", "0"],
    ],
    ids=["build_lake", "train"],
)
def test_what_runs_on_ray_says_in_one_line_that_it_is_missing(
    words: list[str], drive_sources: list[str], drive_lake: Lake, empty: Path, tmp_path: Path
) -> None:
    known = {"source": drive_sources[0], "lake": drive_lake.store.url, "out": str(tmp_path / "out")}
    done = run_without(("ray",), empty, [word.format(**known) for word in words])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "this runs on Ray, which is not installed" in line
