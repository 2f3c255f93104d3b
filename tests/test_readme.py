"""What the README shows is what happens."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from datalake.lake import Lake
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.tfrecord import RecordFile, Slot, write_records
from pipelines import build_lake, evaluate, train
from tests.support.programs import Call

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")


@pytest.mark.integration
@pytest.mark.parametrize("block", BLOCKS, ids=["query", "feed", "frames"])
def test_the_code_runs_on_a_lake(block: str, drive_lake: Lake) -> None:
    code = block.replace("/lakes/waymo", drive_lake.store.root).replace("epochs=None", "epochs=1")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert ("VEHICLE" in printed.getvalue()) == ("duckdb" in block)


def waymo_files(source: Path, folder: Path) -> dict[str, str]:
    """Write frames of the real segment as two files of different segments; return their places by split."""
    with RecordFile(str(source)) as file:
        frames = [file.read(slot) for slot in itertools.islice(file.slots(), 12) if isinstance(slot, Slot)]
    files = {}
    for split, some in (("train", frames[:8]), ("val", frames[9:])):
        records = []
        for one in some:
            frame = dataset_pb2.Frame.FromString(one)
            frame.context.name = f"segment-{split}"
            records.append(frame.SerializeToString())
        files[split] = str(folder / f"{split}.tfrecord")
        write_records(files[split], records)
    return files


@pytest.mark.integration
def test_the_commands_for_waymo_run_on_real_frames(real_data: Path, tmp_path: Path, call: Call) -> None:
    files = waymo_files(real_data / "waymo_front_segment.tfrecord", tmp_path)
    told = []
    for main, of, more in (
        (build_lake.main, "--split train", ["--local"]),
        (build_lake.main, "--split val", ["--local"]),
        (train.main, "/runs/one", ["--loop.steps", "2", "--batch", "2"]),
        (evaluate.main, "/runs/one", ["--batch", "1", "--samples", "2"]),
    ):
        script = main.__module__.replace(".", "/") + ".py"
        (line, *_) = [line for line in SHELL.splitlines() if script in line and of in line]
        split = of.rpartition(" ")[2]
        words = shlex.split(line, comments=True)[2:]
        if "--source" in words:
            # The sources are one file, whatever globs the line has.
            words = ["--source", files[split], *words[words.index("--lake") :]]
        if "--teachers" in words:
            # These frames have no lidar, of which teachers could be trained.
            words = [*words[: words.index("--teachers")], "--teachers", "none"]
        words = [word.replace("/lakes/", f"{tmp_path}/").replace("/runs/", f"{tmp_path}/") for word in words]
        status, output, errors = call(main, [*words, *more])
        assert status == 0, errors
        told.append(output)
    assert "image size 960 x 640, the largest that is tried: " in told[2]
    assert json.loads((tmp_path / "one/evaluation/metrics.json").read_text())["evaluated"]["image_size"] == [960, 640]


def test_every_file_that_it_names_is_there() -> None:
    named = re.findall(r"(?:python |\]\()((?:pipelines|docs)/[\w./]+)", README)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_make_target_that_it_names_is_there() -> None:
    targets = set(re.findall(r"make (\w+)", README))
    rules = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= rules
    assert shutil.which("make")
