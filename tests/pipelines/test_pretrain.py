"""Pre-training as users start it, killed in the middle, and a student that starts from its trunk."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from datalake.commit import LakeError
from datalake.export import export_split
from datalake.lake import open_lake
from datalake.store import Store
from pipelines import pretrain, train
from pipelines.pretrain import PretrainConfig
from pipelines.train_config import TrainConfig
from pipelines.train_setup import prepare_training
from pipelines.trunk_weights import load_pretrained
from student.checkpoint import read_student
from student.config import StudentConfig, StudentError
from student.pretraining.byol import ByolConfig
from student.pretraining.byol_dense import ByolDenseConfig
from student.pretraining.byol_lidar import ByolLidarConfig
from student.pretraining.dino import DinoConfig
from student.pretraining.odin import OdinConfig
from student.pretraining.views import ViewConfig
from student.pretraining.vit import VitConfig
from tests.student.students import TINY, build
from tests.support.history import logged
from tests.support.programs import Call, start
from training.checkpoint import load_checkpoint
from training.errors import TrainingError
from training.loop import LoopConfig
from training.run_dir import RunDir

pytestmark = pytest.mark.integration

QUIET = Console(quiet=True)
STEPS = 6


def settings(lake: str, out: Path) -> PretrainConfig:
    """Return the tiny pre-training that `words` asks for."""
    return PretrainConfig(
        lake=lake,
        out=str(out),
        student=StudentConfig(stages=TINY.stages, blocks=TINY.blocks, width=TINY.width),
        image_size=(96, 64),
        batch=2,
        device="cpu",
        views=ViewConfig(size=(64, 32)),
        byol=ByolConfig(hidden=16, dimensions=8, recent=4),
        byol_dense=ByolDenseConfig(hidden=16, dimensions=8, recent=4),
        byol_lidar=ByolLidarConfig(hidden=16, dimensions=8, recent=4, places=16, crop=32),
        dino=DinoConfig(prototypes=16, hidden=16, bottleneck=8, crops=2, crop_size=(32, 32), recent=4, frozen=0.4),
        odin=OdinConfig(hidden=16, dimensions=8, recent=4, regions=3, start=0.3),
        loop=LoopConfig(steps=STEPS, warmup=0.1, diagnose_every=2, checkpoint_every=2, precision="float32"),
    )


def words(lake: str, out: Path) -> list[str]:
    options = (
        "--student.stages 8 8 16 16 16 --student.blocks 1 1 1 1 --student.width 16 --image-size 96 64 --batch 2"
        " --device cpu --views.size 64 32 --byol.hidden 16 --byol.dimensions 8 --byol.recent 4"
        f" --loop.steps {STEPS} --loop.warmup 0.1 --loop.diagnose-every 2 --loop.checkpoint-every 2"
        " --loop.precision float32 --method byol --pairs next"
    )
    return ["--lake", lake, "--out", str(out), *options.split()]


def weights(out: Path) -> dict[str, Tensor]:
    checkpoint = load_checkpoint(RunDir(str(out)))
    assert checkpoint is not None
    return checkpoint.objective


def trunk(out: Path) -> dict[str, Tensor]:
    return {name[6:]: value for name, value in weights(out).items() if name.startswith("trunk.")}


@pytest.fixture(scope="module")
def whole(split_lake: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    assert pretrain.run(settings(split_lake, out), QUIET) == 0
    return out


def test_a_killed_run_ends_as_an_uninterrupted_one_to_the_last_bit(
    split_lake: str, whole: Path, tmp_path: Path, call: Call
) -> None:
    out = tmp_path / "run"
    process = start("pretrain.py", words(split_lake, out))
    deadline = time.monotonic() + 120
    # Behind the first checkpoint, at the latest.
    while not (out / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    status, output, errors = call(pretrain.main, words(split_lake, out))
    assert status == 0, errors
    assert "pre-trained 6 steps in" in output
    assert logged(out) == logged(whole)
    found, expected = weights(out), weights(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Killed(Exception):  # noqa: N818 - it is no error of the training
    """What ends a run."""


@pytest.mark.parametrize(
    ("method", "pairs"),
    [
        ("byol", "same"),
        ("byol", "shuffled"),
        ("byol-dense", "same"),
        ("byol-lidar", "next"),
        ("dino", "next"),
        ("odin", "next"),
    ],
)
def test_a_run_of_other_methods_and_pairs_is_continued_likewise(
    split_lake: str, tmp_path: Path, method: Any, pairs: Any
) -> None:
    def stop(step: int, _metrics: Mapping[str, float]) -> None:
        if step == 3:
            raise Killed

    configs = [
        replace(settings(split_lake, tmp_path / name), method=method, pairs=pairs) for name in ("whole", "stopped")
    ]
    device = torch.device("cpu")
    pretrain.pretrain(configs[0], device, QUIET)
    with pytest.raises(Killed):
        pretrain.pretrain(configs[1], device, QUIET, stop)
    pretrain.pretrain(configs[1], device, QUIET)
    found, expected = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")


def test_a_batch_in_parts_keeps_its_pairs_together(split_lake: str, tmp_path: Path) -> None:
    # Batch norms would see other batches.
    config = settings(split_lake, tmp_path / "whole")
    config = replace(config, byol=replace(config.byol, head_norm="layer"), loop=replace(config.loop, steps=1))
    pretrain.run(config, QUIET)
    in_parts = replace(config.loop, accumulate=2)
    pretrain.run(replace(config, out=str(tmp_path / "parts"), loop=in_parts), QUIET)
    parts, together = (logged(tmp_path / name)[0]["loss/byol"] for name in ("parts", "whole"))
    assert parts == pytest.approx(together, rel=1e-4)


def test_other_settings_do_not_continue_a_run(split_lake: str, whole: Path) -> None:
    for other in (
        replace(settings(split_lake, whole), pairs="same"),
        replace(settings(split_lake, whole), byol=ByolConfig(hidden=16, dimensions=8, recent=4, momentum=0.5)),
        replace(settings(split_lake, whole), student=StudentConfig(stages=TINY.stages, blocks=TINY.blocks, width=8)),
    ):
        with pytest.raises(TrainingError, match="a run with other settings is under way here"):
            pretrain.run(other, QUIET)


def test_what_does_not_reach_the_trunk_may_differ(split_lake: str, whole: Path) -> None:
    config = settings(split_lake, whole)
    assert pretrain.run(replace(config, student=replace(config.student, head_width=8)), QUIET) == 0


def test_a_collapse_is_said_in_one_line(split_lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(config: PretrainConfig) -> Any:
        objective = pretrain.ByolObjective(config.student, config.byol, config.views)
        parameters = dict(objective.named_parameters())
        with torch.no_grad():
            parameters["projector.1.weight"].zero_()
            parameters["projector.1.bias"].fill_(1.0)
        return objective

    monkeypatch.setitem(pretrain.METHODS, "byol", pretrain.MethodEntry(constant))
    config = settings(split_lake, tmp_path / "run")
    console = Console(width=200, record=True, file=(tmp_path / "printed").open("w"))
    pretrain.run(replace(config, optimizer=replace(config.optimizer, learning_rate=1e-9)), console)
    told = [line for line in console.export_text().splitlines() if "collapse" in line]
    assert told[0].startswith("step 3: collapse: std 0.000 < 0.2: projections are about the same")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "none"], "no split 'none'"),
        (["--views.size", "60", "32"], "do not divide into cells of 32"),
        (["--views.area", "0.9", "0.3"], "--views.area 0.9 0.3: expected the smaller one first"),
        (["--batch", "7"], "has 6 pairs (next) of FRONT, fewer than one batch of 7"),
        (["--method", "byol-dense", "--pairs", "next"], "byol-dense compares places of one image; give --pairs same"),
        (["--method", "byol-lidar", "--pairs", "shuffled"], "show no place that byol-lidar could find"),
        (["--method", "odin", "--odin.cell", "3"], "--views.size 64 32: no whole cells of 12 pixels"),
        (["--method", "dino", "--dino.crop-size", "60", "32"], "do not divide into cells of 32"),
        (
            ["--method", "dino", "--dino.network", "vit", "--dino.vit.patch", "48"],
            "--views.size 64 32: no whole patches",
        ),
        (["--student.trunk", "timm:resnet18", "--student.trunk-weights", "w"], "starts from random weights"),
    ],
)
def test_bad_arguments_give_status_2_and_one_line(
    split_lake: str, tmp_path: Path, more: list[str], message: str, call: Call
) -> None:
    assert message in call.refused(pretrain.main, [*words(split_lake, tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()


def student_run(lake: str, out: Path, init: Path | None) -> TrainConfig:
    return TrainConfig(
        lake=lake,
        out=str(out),
        init=None if init is None else str(init),
        student=TINY,
        image_size=(96, 64),
        batch=2,
        min_anchor_recall=0.0,
        loop=LoopConfig(steps=2, checkpoint_every=1, precision="float32"),
        device="cpu",
    )


def test_init_gives_a_student_exactly_the_trunk(split_lake: str, whole: Path, tmp_path: Path) -> None:
    plans = [
        prepare_training(student_run(split_lake, tmp_path / "out", init), QUIET, lambda *_: None)
        for init in (whole, None)
    ]
    given, scratch = (train.build_objective(plan).student.state_dict() for plan in plans)
    own = trunk(whole)
    assert own
    for name, value in given.items():
        prefix = "backbone.trunk."
        expected = own[name.removeprefix(prefix)] if name.startswith(prefix) else scratch[name]
        assert torch.equal(value, expected), name
    assert not all(torch.equal(value, scratch[name]) for name, value in given.items())


def test_a_transformers_run_is_continued_and_gives_no_trunk(split_lake: str, tmp_path: Path) -> None:
    config = settings(split_lake, tmp_path / "run")
    vit = VitConfig(dimensions=16, blocks=1, heads=2, size=(64, 32))
    config = replace(config, method="dino", dino=replace(config.dino, network="vit", vit=vit))
    assert pretrain.run(replace(config, loop=replace(config.loop, steps=2)), QUIET) == 0
    with pytest.raises(TrainingError, match="a run with other settings"):
        pretrain.run(replace(config, dino=replace(config.dino, vit=replace(vit, blocks=2))), QUIET)
    with pytest.raises(StudentError, match="not a pre-trained trunk"):
        train.run(student_run(split_lake, tmp_path / "out", tmp_path / "run"), QUIET)


def test_clips_of_a_folder_stand_for_a_lake(split_lake: str, tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "exported"
    list(export_split(open_lake(split_lake), "train", Store(str(folder)), "coco"))

    def stop(step: int, _metrics: Mapping[str, float]) -> None:
        if step == 3:
            raise Killed

    clips, device = str(folder / "images" / "train"), torch.device("cpu")
    whole, stopped = (
        replace(settings(split_lake, tmp_path / name), lake=None, clips=clips) for name in ("whole", "stopped")
    )
    pretrain.pretrain(whole, device, QUIET)
    with pytest.raises(Killed):
        pretrain.pretrain(stopped, device, QUIET, stop)
    pretrain.pretrain(stopped, device, QUIET)
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")
    for image in (folder / "images").rglob("*.jpg"):
        image.rename(image.with_name(f"other_{image.name}"))
    with pytest.raises(TrainingError, match="clips_sha256"):
        pretrain.pretrain(whole, device, QUIET)
    with pytest.raises(LakeError, match="no points, which --method byol-lidar needs"):
        pretrain.run(replace(whole, method="byol-lidar"), QUIET)
    both = ["--clips", clips, *words(split_lake, tmp_path / "out")]
    assert "expected either --lake or --clips" in call.refused(pretrain.main, both)


@pytest.mark.parametrize("masks", ["lidar", "panoptic"])
def test_regions_of_lidar_and_of_labels_reach_the_method(split_lake: str, tmp_path: Path, masks: Any) -> None:
    config = settings(split_lake, tmp_path / "run")
    config = replace(config, method="odin", odin=replace(config.odin, masks=masks), image_size=(96, 64))
    assert pretrain.run(replace(config, loop=replace(config.loop, steps=3, diagnose_every=1)), QUIET) == 0
    assert logged(tmp_path / "run")[2]["regions"] > 1


def test_a_trunk_that_has_changed_since_the_training_was_prepared_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="the trunk has changed since the training began"):
        load_pretrained(build(TINY), str(whole), str(tmp_path), "0" * 64)


def test_the_trunk_decides_about_the_students_run(split_lake: str, whole: Path, tmp_path: Path) -> None:
    init = tmp_path / "init"
    shutil.copytree(whole, init)
    config = student_run(split_lake, tmp_path / "out", init)
    assert train.run(config, QUIET) == 0
    recorded = read_student(config.out)[1].fingerprint["init"]
    assert isinstance(recorded, str)
    assert len(recorded) == 64
    # The same trunk elsewhere is the same; another one is not.
    assert train.run(replace(config, init=str(whole)), QUIET) == 0
    with pytest.raises(TrainingError, match=rf"init {recorded} instead of None"):
        train.run(replace(config, init=None), QUIET)
    shutil.rmtree(init)
    console = Console(width=300, record=True, file=(tmp_path / "printed").open("w"))
    assert train.run(config, console) == 0
    assert f"is gone; the run goes on with what it has made of the trunk {recorded}" in console.export_text()


def test_an_init_that_does_not_fit_is_refused(split_lake: str, whole: Path, tmp_path: Path) -> None:
    config = student_run(split_lake, tmp_path / "out", whole)
    wider = replace(config, student=replace(TINY, width=24))
    with pytest.raises(StudentError, match=r"another trunk than the student's: width 16 instead of 24;"):
        train.run(wider, QUIET)
    with pytest.raises(StudentError, match=r"checkpoint\.pt: no such checkpoint; give the folder of a run of pretrain"):
        train.run(replace(config, init=str(tmp_path / "nothing")), QUIET)
    scratch = student_run(split_lake, tmp_path / "scratch", None)
    assert train.run(scratch, QUIET) == 0
    with pytest.raises(StudentError, match="not a pre-trained trunk"):
        train.run(replace(config, init=scratch.out), QUIET)
