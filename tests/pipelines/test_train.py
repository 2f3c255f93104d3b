"""Training a student as users start it: killed in the middle, on a cluster, and with what cannot work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from rich.console import Console

from datalake.commit import LakeError
from datalake.lake import Lake, open_lake
from pipelines.cache_targets import CacheTargetsConfig
from pipelines.cache_targets import run as cache_targets
from pipelines.train import main, run, train_worker
from pipelines.train_config import Method, TrainConfig, read_preset
from pipelines.train_on_ray import wants_gpus
from pipelines.train_setup import prepare_training
from student.checkpoint import read_student
from student.config import StudentConfig
from teachers.card import WEIGHTS_FILE, TeacherError, TrainingData, read_card, write_card
from tests.pipelines.small_teachers import write_teachers
from tests.support.data import ROOT
from tests.support.programs import Call, start
from training.checkpoint import CHECKPOINT_FILE
from training.distributed import Distributed
from training.errors import TrainingError
from training.loop import LoopConfig
from training.metrics_log import HISTORY_FILE
from training.optimizer import OptimizerConfig
from training.run_dir import RunDir

pytestmark = pytest.mark.integration

STEPS = 6
CLOCK = {"images_per_second", "wait/data", "wait/teachers"}


@pytest.fixture(scope="module")
def teachers(two_teachers: dict[str, str]) -> tuple[str, ...]:
    """Two untrained teachers, as --teachers names them."""
    return tuple(f"{name}={url}" for name, url in two_teachers.items())


def settings(lake: Lake, out: Path | str, teachers: tuple[str, ...] = ("none",), **changes: object) -> TrainConfig:
    """Return the short training that `arguments` asks for."""
    config = TrainConfig(
        lake=lake.store.root,
        out=str(out),
        teachers=teachers,
        image_size=(96, 64),
        labelled_fraction=0.6,
        batch=4,
        unlabelled=2,
        min_anchor_recall=0.0,
        device="cpu",
        loop=LoopConfig(steps=STEPS, checkpoint_every=2, precision="float32"),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def arguments(lake: Lake, out: Path | str, teachers: tuple[str, ...] = ("none",)) -> list[str]:
    return [
        "--lake", lake.store.root, "--out", str(out), "--teachers", *teachers, "--image-size", "96", "64",
        "--labelled-fraction", "0.6", "--batch", "4", "--unlabelled", "2", "--min-anchor-recall", "0",
        "--device", "cpu", "--loop.steps", str(STEPS), "--loop.checkpoint-every", "2", "--loop.precision", "float32",
    ]  # fmt: skip


def log(out: Path | str) -> list[dict[str, float]]:
    """Return the history without what the clock says."""
    content = RunDir(str(out)).read(HISTORY_FILE)
    assert content is not None
    lines = [json.loads(line) for line in content.decode().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


@pytest.fixture(scope="module")
def whole(drive_lake: Lake, teachers: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run with both teachers leaves."""
    out = tmp_path_factory.mktemp("whole")
    assert run(settings(drive_lake, out, teachers), Console(quiet=True)) == 0
    return out


def test_a_killed_run_ends_as_an_uninterrupted_one(
    drive_lake: Lake, teachers: tuple[str, ...], whole: Path, tmp_path: Path, call: Call
) -> None:
    words = arguments(drive_lake, tmp_path, teachers)
    killed = start("train.py", words)
    history, deadline = tmp_path / HISTORY_FILE, time.monotonic() + 240
    # Step 3 is behind the checkpoint of two steps, and is lost.
    while not (history.exists() and len(history.read_text().splitlines()) >= 4):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    killed.communicate()
    done = read_student(str(tmp_path))[1].step
    assert done in (2, 4)
    status, output, errors = call(main, words)
    assert status == 0, errors
    assert f"trained {STEPS} steps" in output
    assert log(tmp_path) == log(whole)
    assert [line["step"] for line in log(tmp_path)] == list(range(STEPS))
    expected, found = read_student(str(whole))[0], read_student(str(tmp_path))[0]
    for name, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name


def test_the_student_has_a_branch_for_each_teacher(whole: Path, teachers: tuple[str, ...]) -> None:
    student, checkpoint = read_student(str(whole))
    cards = [read_card(teacher.partition("=")[2]) for teacher in teachers]
    found = [(spec.name, spec.kind, spec.channels) for spec in student.config.branches]
    assert found == [("points", cards[0].kind, cards[0].channels), ("masks", cards[1].kind, cards[1].channels)]
    assert checkpoint.fingerprint["teacher.masks"] == cards[1].weights_sha256
    assert "methods.imitation.class_weights.masks" in checkpoint.objective
    assert {"loss/imitation/points", "loss/imitation/masks"} <= set(log(whole)[0])


@pytest.mark.parametrize(
    ("changes", "imitated", "otherwise"),
    [
        ({"distill": ("none",)}, set[str](), set[str]()),
        ({"targets": "shuffled"}, {"points", "masks"}, {"points", "masks"}),
        ({"mute": ("points",)}, {"masks"}, set[str]()),
    ],
    ids=["none", "shuffled", "mute"],
)
def test_controls_have_the_same_weights_to_train_and_hear_what_they_should(
    drive_lake: Lake,
    teachers: tuple[str, ...],
    whole: Path,
    tmp_path: Path,
    changes: dict[str, object],
    imitated: set[str],
    otherwise: set[str],
) -> None:
    once = LoopConfig(steps=1, warmup=0, precision="float32")
    config = settings(drive_lake, tmp_path, teachers, loop=once, **changes)
    assert run(config, Console(quiet=True)) == 0
    expected, found = (read_student(str(out))[0].state_dict() for out in (whole, tmp_path))
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in expected.items()}
    # The weights and images of the first step are the same: only other targets make other losses.
    real, control = log(whole)[0], log(tmp_path)[0]
    names = {name for name in control if name.startswith("loss/imitation/")}
    assert {name.removeprefix("loss/imitation/") for name in names} == imitated
    assert {name.removeprefix("loss/imitation/") for name in names if control[name] != real[name]} == otherwise


def test_without_distillation_no_teacher_is_asked_and_all_images_are_labelled(
    drive_lake: Lake, teachers: tuple[str, ...], tmp_path: Path
) -> None:
    for teacher in teachers:
        (Path(teacher.partition("=")[2]) / WEIGHTS_FILE).rename(tmp_path / f"{teacher.partition('=')[0]}.gone")
    try:
        plan = prepare_training(
            settings(drive_lake, tmp_path / "out", teachers, distill=("none",)), Console(quiet=True), lambda *_: None
        )
        assert (plan.labelled, plan.unlabelled) == (4, 0)
        assert plan.teachers == {}
        assert len(plan.student.branches) == 2
    finally:
        for teacher in teachers:
            (tmp_path / f"{teacher.partition('=')[0]}.gone").rename(Path(teacher.partition("=")[2]) / WEIGHTS_FILE)


@pytest.mark.parametrize(("steps", "unlabelled"), [(10, 0), (10_000, 2)])
def test_by_default_labelled_images_come_first(
    drive_lake: Lake, teachers: tuple[str, ...], tmp_path: Path, steps: int, unlabelled: int
) -> None:
    config = settings(drive_lake, tmp_path, teachers, unlabelled=None, loop=LoopConfig(steps=steps))
    plan = prepare_training(config, Console(quiet=True), lambda *_: None)
    assert (plan.labelled, plan.unlabelled) == (4 - unlabelled, unlabelled)


def test_the_first_weights_are_those_of_the_seed_whatever_is_distilled(
    drive_lake: Lake, teachers: tuple[str, ...], tmp_path: Path
) -> None:
    # A step without a rate would be none at all; with a tiny one the weights stay as they were drawn.
    still = LoopConfig(steps=1, warmup=0, precision="float32")
    nothing = OptimizerConfig(learning_rate=1e-30)
    weights = []
    methods: tuple[Method, ...] = ("imitation", "none")
    for method in methods:
        out = tmp_path / method
        config = settings(drive_lake, out, teachers, distill=(method,), loop=still, optimizer=nothing)
        run(config, Console(quiet=True))
        weights.append(read_student(str(out))[0].state_dict())
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], rtol=0, atol=1e-20), name


def test_a_run_in_a_store_goes_on_where_it_was(drive_lake: Lake, tmp_path: Path, s3_lake: str) -> None:
    config = settings(drive_lake, s3_lake)

    def progress(step: int, _: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    plan = prepare_training(config, Console(quiet=True), lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        train_worker(plan, Distributed(), progress)
    assert read_student(s3_lake)[1].step == 2
    assert run(config, Console(quiet=True)) == 0
    assert run(settings(drive_lake, tmp_path / "whole"), Console(quiet=True)) == 0
    assert read_student(s3_lake)[1].step == STEPS
    assert log(s3_lake) == log(tmp_path / "whole")


def test_anchors_are_checked_and_printed_before_the_first_step(drive_lake: Lake, tmp_path: Path) -> None:
    written = tmp_path / "console"
    with written.open("w") as file:
        prepare_training(settings(drive_lake, tmp_path / "out"), Console(file=file), lambda *_: None)
    assert "anchor recall: " in written.read_text()
    assert "2 segments with labels, 1 without; 4 and 0 images of a batch" in written.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lake", "/nowhere"], "/nowhere: no lake here"),
        (["--split", "test"], "no split 'test', there are: train"),
        (["--cameras", "SIDE_LEFT"], "has 0 images of SIDE_LEFT"),
        (["--teachers", "masks=/nowhere"], "/nowhere/card.json: no such file; is this the folder of a teacher?"),
        (["--teachers", "masks"], "--teachers masks: expected NAME=FOLDER, or none alone"),
        (["--mute", "masks"], "--mute masks: expected one of the teachers (there is none)"),
        (["--image-size", "100", "64"], "images of 100 x 64 pixels do not divide into cells of 32"),
        (["--anchors", "paper", "--min-anchor-recall", "0.9"], "--min-anchor-recall asks for 90%"),
        (["--labelled-fraction", "0"], "--labelled-fraction 0: expected more than 0 and at most 1"),
        (["--batch", "3", "--workers", "2"], "3 labelled images (--batch less --unlabelled) cannot be cut among"),
        (["--batch", "60"], "has 22 images of FRONT, fewer than one batch of 60"),
        (["--optimizer.learning-rate", "0"], "--optimizer.learning-rate 0: expected more than 0"),
        (["--targets", "shuffled"], "--targets shuffled: expected teachers"),
        (["--preset", "papers"], "--preset papers: expected one of classroom, paper, resnet50"),
    ],
)
def test_bad_arguments_give_status_2_and_one_line(
    drive_lake: Lake, tmp_path: Path, words: list[str], message: str, call: Call
) -> None:
    # What is said twice counts as it is said last.
    assert message in call.refused(main, [*arguments(drive_lake, tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def test_a_preset_sets_the_defaults_of_the_student_and_flags_change_parts_of_it() -> None:
    rest, default = read_preset(["--seed", "3", "--preset=paper", "--student.width", "8", "--lake", "l", "--out", "o"])
    config = tyro.cli(TrainConfig, args=rest, default=default)
    assert config.student == replace(StudentConfig.paper(), width=8)
    assert (config.seed, config.lake, config.out) == (3, "l", "o")
    rest, default = read_preset(["--preset", "resnet50", "--lake", "l", "--out", "o", "--student.width", "64"])
    config = tyro.cli(TrainConfig, args=rest, default=default)
    assert config.student == replace(StudentConfig.resnet50(), width=64)
    assert (config.image_size, config.optimizer.learning_rate) == ((960, 640), 1e-3)
    rest, default = read_preset(["--lake", "l", "--out", "o", "--student.norm", "batch"])
    assert tyro.cli(TrainConfig, args=rest, default=default).student == StudentConfig(norm="batch")


def test_parts_of_a_student_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    rest, default = read_preset(["--lake", "l", "--out", "o", "--preset", "paper", "--student.trunk", "fpn"])
    with pytest.raises(SystemExit) as ended:
        tyro.cli(TrainConfig, args=rest, default=default)
    assert ended.value.code == 2
    assert "trunk fpn: expected 5 stages with the stem" in capsys.readouterr().err


def test_a_study_takes_a_preset_for_its_training() -> None:
    rest, default = read_preset(["--train.preset", "paper", "--seeds", "1"], "--train.preset")
    assert rest == ["--seeds", "1"]
    assert default.student == StudentConfig.paper()


def test_what_a_training_finds_out_is_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(TrainConfig, args=["--help"])
    told = capsys.readouterr().out
    assert "--student.rpn-positive-iou" in told
    assert "--student.branches" not in told
    assert "--student.anchors" not in told


def test_a_teacher_of_the_students_own_segments_is_refused(drive_lake: Lake, tmp_path: Path, call: Call) -> None:
    url = write_teachers(tmp_path)["masks"]
    segments = {"train": tuple(commit.segment for commit in drive_lake.commits)}
    write_card(url, replace(read_card(url), data=TrainingData(lake="/lake", snapshot=1, segments=segments)))
    words = arguments(drive_lake, tmp_path / "out", (f"masks={url}",))
    assert "teacher masks was trained on 3 of the student's segments" in call.refused(main, words)


def test_more_unlabelled_images_than_the_batch_has_are_refused(
    drive_lake: Lake, teachers: tuple[str, ...], tmp_path: Path, call: Call
) -> None:
    words = [*arguments(drive_lake, tmp_path / "out", teachers), "--unlabelled", "4"]
    assert "--unlabelled 4: expected fewer than the 4 images of a batch" in call.refused(main, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "1"], "a run with other settings is under way here: seed 0 instead of 1"),
        (["--teachers", "none"], "a run with other settings is under way here: "),
    ],
)
def test_a_run_of_other_settings_is_refused_in_one_line(
    drive_lake: Lake, teachers: tuple[str, ...], whole: Path, words: list[str], message: str, call: Call
) -> None:
    before = (whole / CHECKPOINT_FILE).read_bytes()
    assert message in call.refused(main, [*arguments(drive_lake, whole, teachers), *words])
    assert (whole / CHECKPOINT_FILE).read_bytes() == before


def test_branches_nobody_is_asked_for_are_other_settings_as_well(
    drive_lake: Lake, teachers: tuple[str, ...], tmp_path: Path
) -> None:
    once = LoopConfig(steps=1, warmup=0, precision="float32")
    run(settings(drive_lake, tmp_path, teachers, distill=("none",), loop=once), Console(quiet=True))
    with pytest.raises(TrainingError, match="other settings is under way here: branches"):
        run(settings(drive_lake, tmp_path, distill=("none",), loop=once), Console(quiet=True))


def test_a_damaged_checkpoint_is_refused_in_one_line(drive_lake: Lake, tmp_path: Path, call: Call) -> None:
    (tmp_path / CHECKPOINT_FILE).write_bytes(b"PK damaged")
    line = call.refused(main, arguments(drive_lake, tmp_path))
    assert line.startswith(f"train: {tmp_path}/checkpoint.pt: not a training checkpoint: ")


@pytest.mark.parametrize(("device", "gpus", "used"), [("auto", 0, False), ("auto", 2, True), ("cpu", 8, False)])
def test_workers_take_a_gpu_each_where_there_are_any(device: str, gpus: int, used: bool) -> None:
    assert wants_gpus(TrainConfig(lake="", out="", workers=2, device=device), gpus) is used


def test_gpus_for_some_of_the_workers_alone_are_refused() -> None:
    with pytest.raises(TrainingError, match="GPUs for 1 of them; give --workers 1, or --device cpu"):
        wants_gpus(TrainConfig(lake="", out="", workers=2), 1)


def test_gpus_that_the_teachers_leave_none_of_are_refused() -> None:
    config = TrainConfig(lake="", out="", workers=2, teachers=("a=/a", "b=/b"), teachers_in="actors", teacher_gpus=0.5)
    assert wants_gpus(config, 3)
    with pytest.raises(TrainingError, match=r"GPUs for 1 of them beside the teachers' 0.5 each; give --workers 1"):
        wants_gpus(config, 2)


@pytest.fixture
def cached(drive_lake: Lake, teachers: tuple[str, ...], tmp_path: Path) -> Lake:
    """A lake with both teachers' answers to every image, of that of classes under another name."""
    shutil.copytree(drive_lake.store.root, tmp_path / "lake")
    for teacher, table in zip(teachers, (None, "once"), strict=True):
        config = CacheTargetsConfig(
            lake=str(tmp_path / "lake"), teacher=teacher.split("=")[1], name=table, grid=(16, 24), image_size=(96, 64)
        )
        assert cache_targets(config, Console(quiet=True)) == 0
    return open_lake(str(tmp_path / "lake"))


def test_looked_up_answers_teach_what_the_teacher_would_have_taught(
    cached: Lake, teachers: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    named = dict(one.split("=") for one in teachers)
    for name, url in named.items():
        shutil.copytree(url, tmp_path / name)
    told = tuple(f"{name}={tmp_path / name}" for name in named)
    config = settings(cached, tmp_path / "out", told, cached=("points", "masks=once"))
    plan = prepare_training(config, Console(quiet=True), lambda *_: None)
    # Nobody can ask them any more, and no points can be read.
    for name in named:
        (tmp_path / name / WEIGHTS_FILE).unlink()
    for table in ("point", "depth"):
        shutil.rmtree(tmp_path / "lake/train" / table)
    train_worker(plan, Distributed(device=torch.device("cpu")))
    for looked_up, asked in zip(log(tmp_path / "out"), log(whole), strict=True):
        assert looked_up == pytest.approx(asked, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cached": ("colors",)}, "--cached colors: expected one of the teachers points, masks"),
        ({"cached": ("points=once",)}, "table teacher_once, segment .*: made with weights"),
        ({"cached": ("masks",)}, "table teacher_mask_rcnn lacks 3 of 3 segments of split 'train'"),
        (
            {"cached": ("masks=once",), "image_size": (128, 64)},
            "--cached masks: the lake has its predictions for images of 96 x 64 pixels on a grid of 16 x 24 cells, not"
            " 128 x 64 and 16 x 32; run cache_targets.py with --grid 16 32 --image-size 128 64 and another --name",
        ),
        ({"teachers_in": "actors"}, "--teachers-in actors: expected --workers 1 or more"),
        ({"teacher_gpus": 0.5}, "--teacher-gpus: only with --teachers-in actors"),
    ],
)
def test_teachers_that_cannot_be_where_they_are_said_to_be_are_refused(
    cached: Lake, teachers: tuple[str, ...], tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises((TeacherError, LakeError), match=message):
        prepare_training(settings(cached, tmp_path / "out", teachers, **change), Console(quiet=True), lambda *_: None)


@pytest.mark.slow
def test_teachers_in_actors_teach_what_they_teach_in_the_students_process(
    drive_lake: Lake, teachers: tuple[str, ...], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert run(settings(drive_lake, tmp_path, teachers, workers=1, teachers_in="actors"), Console(quiet=True)) == 0
    for elsewhere, here in zip(log(tmp_path), log(whole), strict=True):
        assert elsewhere == pytest.approx(here, rel=1e-4)


@pytest.mark.slow
def test_workers_of_ray_train_do_what_one_process_does(
    drive_lake: Lake, teachers: tuple[str, ...], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Told where to read and write from where it is started.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    named = (teacher.split("=") for teacher in teachers)
    near = tuple(f"{name}={os.path.relpath(url, tmp_path)}" for name, url in named)
    config = settings(drive_lake, "out", near, workers=2)
    assert run(config, Console(quiet=True)) == 0
    assert [line["step"] for line in log(tmp_path / "out")] == list(range(STEPS))
    for one, two in zip(log(whole), log(tmp_path / "out"), strict=True):
        # Muon's first step enlarges rounding; then another proposal survives, and losses of what is drawn differ.
        # That they stay equal without Muon is tested where no cluster is needed (`test_two_workers_do_what_one_does`).
        exact = one["step"] == 0
        for name in (name for name in one if name.startswith("loss/")):
            assert two[name] == pytest.approx(one[name], rel=1e-4 if exact else 0.1, abs=1e-5 if exact else 0.02), name


@pytest.mark.slow
def test_what_stops_all_workers_of_ray_train_is_said_as_one_process_says_it(
    drive_lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    once = LoopConfig(steps=1, warmup=0, precision="float32")
    run(settings(drive_lake, tmp_path / "out", loop=once), Console(quiet=True))
    # As an answer, not as a worker that failed and would be started again.
    with pytest.raises(TrainingError, match=r"^/.*/checkpoint\.pt: a run with other settings .*: seed 0 instead of 1"):
        run(settings(drive_lake, tmp_path / "out", loop=once, workers=2, seed=1), Console(quiet=True))
