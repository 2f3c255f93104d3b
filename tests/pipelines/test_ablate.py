"""The study: which students it trains, what it says of them, and what it keeps."""

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
from rich.console import Console

from datalake.commit import LakeError
from datalake.lake import open_lake
from pipelines.ablate import AblateConfig, first_epoch_losses, jobs_of, opened, run
from pipelines.cache_targets import CacheTargetsConfig
from pipelines.cache_targets import run as cache_targets
from pipelines.image_size import choose_image_size
from pipelines.train_config import TrainConfig
from student.config import StudentConfig, StudentError
from student.export import WEIGHTS_FILE
from teachers.card import TeacherError
from tests.pipelines.test_detector_teachers import run_of, write_run
from tests.support.programs import start
from training.checkpoint import CHECKPOINT_FILE
from training.errors import TrainingError
from training.loop import LoopConfig
from training.metrics_log import HISTORY_FILE
from training.run_dir import RunDir

pytestmark = pytest.mark.integration

SIZE, STEPS = (96, 64), 2
STUDY = AblateConfig(
    train=TrainConfig(lake="lake", out="/out", teachers=("points=/a", "masks=/b"), loop=LoopConfig(steps=STEPS))
)


@pytest.fixture(scope="module")
def study(split_lake: str, two_teachers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> AblateConfig:
    """A study of two arms, run."""
    folder = tmp_path_factory.mktemp("ablate")
    lake = str(folder / "lake")
    shutil.copytree(split_lake, lake)
    for url in two_teachers.values():
        for split in ("train", "val"):
            answers = CacheTargetsConfig(
                lake=lake, teacher=url, split=split, grid=(16, 24), image_size=SIZE, device="cpu"
            )
            assert cache_targets(answers, Console(quiet=True)) == 0
    train = TrainConfig(
        lake=lake,
        out=str(folder / "study"),
        teachers=tuple(f"{name}={url}" for name, url in two_teachers.items()),
        image_size=SIZE,
        batch=4,
        unlabelled=2,
        min_anchor_recall=0.0,
        cached=tuple(two_teachers),
        loop=LoopConfig(steps=STEPS, precision="float32"),
        device="cpu",
    )
    study = AblateConfig(
        train=train, arms=("none", "classroom"), seeds=(0,), labelled_fractions=(0.5,), steps=(STEPS,), parallel=2
    )
    assert run(study, Console(quiet=True)) == 0
    return study


def results_of(study: AblateConfig) -> dict[str, dict[str, dict[str, float]]]:
    """Return arm -> seed -> metrics of the study's only share of labels."""
    results: dict[str, dict[str, dict[str, float]]] = json.loads(
        (Path(study.train.out) / f"ablation-{study.eval_split}.json").read_text(), parse_constant=pytest.fail
    )["0.5"]
    return results


def trained_at(study: AblateConfig) -> list[int]:
    """Return when each student's checkpoint was written."""
    return [path.stat().st_mtime_ns for path in sorted(Path(study.train.out).glob(f"*/*/{CHECKPOINT_FILE}"))]


@pytest.mark.parametrize(("cores", "on_a_gpu", "without"), [(2, 1, 2), (16, 5, 16), (64, 6, 64)])
def test_as_many_students_share_a_gpu_as_the_cores_can_feed(
    cores: int, on_a_gpu: int, without: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    for available, expected in ((True, on_a_gpu), (False, without)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert AblateConfig(train=STUDY.train).parallel == expected


def test_arms_differ_in_whom_the_student_hears_alone() -> None:
    jobs = jobs_of(replace(STUDY, seeds=(3,), labelled_fractions=(0.1,)))
    assert {job.arm: (job.config.distill, job.config.targets, job.config.mute) for job in jobs} == {
        "none": (("none",), "real", ()),
        "classroom": (("imitation",), "real", ()),
        "points": (("imitation",), "real", ("masks",)),
        "masks": (("imitation",), "real", ("points",)),
        "shuffled": (("imitation",), "shuffled", ()),
    }
    same = {replace(job.config, distill=(), targets="real", mute=(), out="") for job in jobs}
    assert same == {replace(STUDY.train, distill=(), seed=3, labelled_fraction=0.1, out="")}


@pytest.mark.parametrize(
    ("arm", "distill", "targets", "mute"),
    [
        ("imitation", ("imitation",), "real", ("big",)),
        ("fitnet", ("fitnet",), "real", ()),
        ("fitnet+imitation", ("imitation", "fitnet"), "real", ()),
        ("fitnet-shuffled", ("fitnet",), "shuffled", ()),
        ("fitnet-random", ("fitnet",), "random", ()),
        ("classroom", ("imitation",), "real", ("big",)),
        ("masks", ("imitation",), "real", ("points", "big")),
        ("none", ("none",), "real", ()),
    ],
)
def test_an_arm_may_be_named_by_its_methods(
    tmp_path: Path, arm: str, distill: tuple[str, ...], targets: str, mute: tuple[str, ...]
) -> None:
    RunDir(str(tmp_path)).write(WEIGHTS_FILE, b"")
    train = replace(STUDY.train, teachers=(*STUDY.train.teachers, f"big={tmp_path}"))
    (job,) = jobs_of(replace(STUDY, train=train, arms=(arm,), seeds=(0,), labelled_fractions=(0.1,)))
    assert (job.config.distill, job.config.targets, job.config.mute) == (distill, targets, mute)


def test_one_teacher_is_the_classroom_and_no_arm_of_its_own() -> None:
    train = replace(STUDY.train, teachers=("points=/a",))
    assert [job.arm for job in jobs_of(replace(STUDY, train=train, seeds=(0,), labelled_fractions=(1.0,)))] == [
        "none",
        "classroom",
        "shuffled",
    ]


def test_every_student_has_a_folder_of_its_own() -> None:
    jobs = jobs_of(replace(STUDY, labelled_fractions=(0.025, 1.0)))
    assert len({job.config.out for job in jobs}) == len(jobs) == 2 * 3 * 5


def test_a_rate_is_for_its_arm_alone() -> None:
    jobs = jobs_of(replace(STUDY, rates=("none=0.25",), seeds=(0,), labelled_fractions=(1.0,)))
    rates = {job.arm: job.config.optimizer.learning_rate for job in jobs}
    assert rates.pop("none") == 0.25
    assert set(rates.values()) == {STUDY.train.optimizer.learning_rate}


def test_each_share_of_labels_has_its_steps() -> None:
    jobs = jobs_of(replace(STUDY, labelled_fractions=(0.025, 1.0), steps=(7, 9)))
    assert {(job.fraction, job.config.loop.steps) for job in jobs} == {(0.025, 7), (1.0, 9)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("fitnet-late",)}, "unknown arm fitnet-late"),
        ({"arms": ("fitnet+fitnet",)}, r"unknown arm fitnet\+fitnet"),
        ({"arms": ("both",)}, "unknown arm both; there are none, classroom, points, masks, shuffled"),
        ({"rates": ("none:1",)}, "expected ARM=RATE"),
        ({"rates": ("all=1",)}, "unknown arm all"),
        ({"steps": (1, 2, 3)}, "expected a number for each"),
        ({"arms": ("none", "none")}, "--arms none: named twice"),
        ({"seeds": (3, 4, 3)}, "--seeds 3: named twice"),
        ({"labelled_fractions": (1.0, 1.0), "steps": (1, 2)}, "--labelled-fractions 1: named twice; for other steps"),
        ({"train": replace(STUDY.train, teachers=("none=/a", "b=/b"))}, "teachers none: that is the name of an arm"),
        ({"train": replace(STUDY.train, workers=2)}, "--train.workers: a study trains each student in one process"),
        ({"train": replace(STUDY.train, teachers=("none",))}, "expected teachers whose help is to be measured"),
    ],
)
def test_a_study_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(StudentError, match=message):
        jobs_of(replace(STUDY, **change))  # type: ignore[arg-type]


def test_none_spends_its_batches_on_labels_and_classroom_half_of_them(study: AblateConfig) -> None:
    visits = {arm: seeds["0"]["training/labelled_images"] for arm, seeds in results_of(study).items()}
    assert visits == {"none": 4 * STEPS, "classroom": 2 * STEPS}


def test_every_arm_is_examined_beside_every_teacher(study: AblateConfig) -> None:
    for seeds in results_of(study).values():
        assert {"AP50", "imitation/points/R2", "imitation/masks/mIoU"} <= seeds["0"].keys()


def test_what_is_trained_and_examined_is_kept(study: AblateConfig) -> None:
    before, found = trained_at(study), results_of(study)
    assert run(study, Console(quiet=True)) == 0
    assert trained_at(study) == before
    assert results_of(study) == found


def test_other_settings_do_not_take_up_what_is_there(study: AblateConfig) -> None:
    optimizer = replace(study.train.optimizer, weight_decay=0.5)
    with pytest.raises(TrainingError, match=r"optimizer\.weight_decay 0\.02 instead of 0\.5"):
        run(replace(study, train=replace(study.train, optimizer=optimizer)), Console(quiet=True))


def children(process: int) -> list[int]:
    """Return the processes that the main thread of a process has started."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_student_that_is_killed_ends_the_study_in_one_line(study: AblateConfig, tmp_path: Path) -> None:
    words = [
        "--train.lake", study.train.lake, "--train.out", str(tmp_path), "--train.teachers", *study.train.teachers,
        "--train.image-size", "96", "64", "--train.batch", "4", "--train.min-anchor-recall", "0",
        "--train.device", "cpu", "--arms", "none", "--labelled-fractions", "0.5", "--steps", "100000",
    ]  # fmt: skip
    running = start("ablate.py", words)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob(f"*/*/{HISTORY_FILE}")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    students = [
        child for child in children(running.pid) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    os.kill(students[0], signal.SIGKILL)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 2
    assert errors.strip().splitlines()[-1].startswith("ablate: a student's process was killed")
    assert not any(Path(f"/proc/{student}").exists() for student in students)


def test_answers_that_are_to_be_looked_up_must_be_there_for_both_splits(study: AblateConfig) -> None:
    with pytest.raises(LakeError, match="table teacher_lidar lacks 1 of 1 segments of split 'test'"):
        opened(replace(study, eval_split="test"), Console(quiet=True))


def test_a_detector_that_knows_the_evaluated_frames_is_refused(study: AblateConfig, tmp_path: Path) -> None:
    known = run_of(open_lake(study.train.lake), split=study.eval_split)
    url = write_run(tmp_path, known, StudentConfig())
    train = replace(study.train, teachers=(*study.train.teachers, f"big={url}"))
    with pytest.raises(TeacherError, match="teacher big has learned from the labels of 1 segments that the student"):
        opened(replace(study, train=train), Console(quiet=True))


def test_all_students_are_of_one_snapshot_and_see_images_of_one_size(study: AblateConfig) -> None:
    assert study.train.snapshot is None
    lake = open_lake(study.train.lake)
    train = opened(replace(study, train=replace(study.train, image_size="auto")), Console(quiet=True)).train
    assert (train.snapshot, train.image_size) == (lake.snapshot, choose_image_size(lake, ("FRONT",))[0])


def test_students_are_examined_on_another_split_without_being_trained_again(study: AblateConfig) -> None:
    before, found = trained_at(study), results_of(study)
    other = replace(study, eval_split="test", train=replace(study.train, cached=()))
    assert run(other, Console(quiet=True)) == 0
    assert trained_at(study) == before
    assert results_of(study) == found
    cells = "imitation/points/cells"
    assert results_of(other)["none"]["0"][cells] != found["none"]["0"][cells]


def test_losses_after_one_epoch_are_those_of_its_last_tenth() -> None:
    history = [{"step": step, "loss/box": float(step), "loss/kd": 1.0, "wait/data": 9.0} for step in range(50)]
    assert first_epoch_losses(history, 40) == {"first_epoch/box": 37.5, "first_epoch/kd": 1.0}
    assert first_epoch_losses(history, 51) == {}


def test_arms_of_detectors_and_of_labels_alone_need_no_teacher_of_maps() -> None:
    alone = replace(STUDY, train=replace(STUDY.train, teachers=("none",)), arms=("none", "lgd"))
    assert [(job.arm, job.config.distill) for job in jobs_of(alone)][:2] == [("none", ("none",)), ("lgd", ("lgd",))]
    with pytest.raises(StudentError, match=r"--train\.teachers pkd: that is the name of an arm"):
        jobs_of(replace(STUDY, train=replace(STUDY.train, teachers=("pkd=/a",))))
