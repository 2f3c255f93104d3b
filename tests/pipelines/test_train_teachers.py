"""Training as users start it: from the command line, killed in the middle, and with what cannot work."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from datalake.build import BuildConfig
from datalake.lake import open_lake
from datalake.loader import LoaderConfig, SampleStream
from pipelines.train_teachers import TeacherName, TrainTeachersConfig, main, run, with_whole_images
from teachers.card import read_card
from teachers.classes import MASK_CLASSES
from teachers.load import load_teacher
from teachers.mask_rcnn.teacher import MaskRcnnConfig
from teachers.mask_rcnn.train import MaskRcnnTrainConfig
from teachers.sanity import check_teacher
from teachers.spvnas.objective import POINT_CLASSES
from teachers.spvnas.train import SpvcnnTrainConfig
from teachers.training import RunContext
from tests.frames import COLUMNS, ROWS, int_matrix, make_frames, write_frames
from tests.lakes import build_files
from tests.support.history import logged
from tests.support.programs import Call, start
from training.checkpoint import Checkpoint, save_checkpoint
from training.errors import TrainingError
from training.loop import LoopConfig
from training.optimizer import OptimizerConfig
from training.run_dir import RunDir
from training.schedule import Schedule

pytestmark = pytest.mark.integration

TEACHERS: tuple[TeacherName, ...] = ("spvcnn", "mask_rcnn")


@pytest.fixture(scope="module")
def lake(split_lake: str) -> str:
    """Two segments to train on and one to examine on."""
    return split_lake


def settings(lake: str, out: Path) -> TrainTeachersConfig:
    """Return the tiny training that `arguments` asks for."""
    loop = LoopConfig(steps=14, warmup=0.1, checkpoint_every=2, precision="float32")
    optimizer = OptimizerConfig(learning_rate=2e-3)
    return TrainTeachersConfig(
        lake=lake,
        out=str(out),
        image_size=(96, 64),
        spvcnn=SpvcnnTrainConfig(width=0.125, voxel_m=0.5, batch=2, optimizer=optimizer, loop=loop),
        mask_rcnn=MaskRcnnTrainConfig(
            network=MaskRcnnConfig(variant="slim", min_size=64, max_size=96, detections=10),
            batch=2,
            optimizer=optimizer,
            loop=replace(loop, steps=5),
        ),
    )


def arguments(lake: str, out: Path) -> list[str]:
    config = settings(lake, out)
    values = {
        "lake": config.lake, "out": config.out, "image-size": (96, 64),
        "spvcnn.width": 0.125, "spvcnn.voxel-m": 0.5,
        "mask-rcnn.network.min-size": 64, "mask-rcnn.network.max-size": 96, "mask-rcnn.network.detections": 10,
        "spvcnn.loop.steps": 14, "mask-rcnn.loop.steps": 5,
    }  # fmt: skip
    for teacher in ("spvcnn", "mask-rcnn"):
        values |= {f"{teacher}.batch": 2, f"{teacher}.optimizer.learning-rate": 2e-3}
        values |= {f"{teacher}.loop.warmup": 0.1, f"{teacher}.optimizer.muon-lr-factor": 2.0}
        values |= {f"{teacher}.loop.checkpoint-every": 2, f"{teacher}.loop.precision": "float32"}
    words: list[str] = []
    for name, value in values.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def kill_after(process: subprocess.Popen[str], history: Path, lines: int) -> None:
    """Kill the process with SIGKILL as soon as its log has so many lines."""
    deadline = time.monotonic() + 120
    while not (history.exists() and len(history.read_text().splitlines()) >= lines):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()


@pytest.fixture(scope="module")
def whole(lake: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run leaves."""
    out = tmp_path_factory.mktemp("whole")
    assert run(settings(lake, out), Console(quiet=True)) == 0
    return out


@pytest.mark.parametrize("killed", [["spvcnn"], pytest.param(["spvcnn", "mask_rcnn"], marks=pytest.mark.slow)])
def test_killed_runs_end_as_an_uninterrupted_one(
    lake: str, whole: Path, tmp_path: Path, killed: list[str], call: Call
) -> None:
    words = arguments(lake, tmp_path)
    for name in killed:
        kill_after(start("train_teachers.py", words), tmp_path / name / "history.jsonl", 3)
        assert not (tmp_path / name / "card.json").exists()
    status, output, errors = call(main, words)
    assert status == 0, errors
    for name in TEACHERS:
        assert logged(tmp_path / name) == logged(whole / name)
        cards = read_card(str(tmp_path / name)), read_card(str(whole / name))
        assert cards[0].weights_sha256 == cards[1].weights_sha256
        assert cards[0].statistics == cards[1].statistics
        assert f"{name}: {cards[0].metrics['training/steps']:.0f} steps" in output
        metrics = [{n: f for n, f in card.metrics.items() if n != "training/seconds"} for card in cards]
        assert metrics[0] == metrics[1]


@pytest.mark.parametrize("name", TEACHERS)
def test_the_log_shows_the_learning_rate_of_every_step(whole: Path, name: str) -> None:
    lines = logged(whole / name)
    steps = {"spvcnn": 14, "mask_rcnn": 5}[name]
    schedule = Schedule(peak=2e-3, steps=steps, warmup_steps=round(0.1 * steps))
    assert [line["step"] for line in lines] == list(range(steps))
    assert [line["learning_rate"] for line in lines] == [schedule.rate(step) for step in range(steps)]


@pytest.mark.parametrize(("size", "sides"), [((96, 64), (256, 384)), ((960, 640), (640, 960))])
def test_the_mask_teacher_never_shrinks_its_images(size: tuple[int, int], sides: tuple[int, int]) -> None:
    network = with_whole_images(TrainTeachersConfig(lake="", out="", image_size=size)).mask_rcnn.network
    assert (network.min_size, network.max_size) == sides


def test_a_lidar_teacher_comes_with_statistics_and_data(lake: str, whole: Path) -> None:
    card = read_card(str(whole / "spvcnn"))
    assert card.class_names == POINT_CLASSES
    assert card.statistics is not None
    assert len(card.statistics.mean) == card.channels == 12
    opened = open_lake(lake)
    assert card.data is not None
    assert (card.data.snapshot, card.data.image_size) == (opened.snapshot, (96, 64))
    assert card.data.segments == {"teach": tuple(sorted(c.segment for c in opened.in_split("teach")))}
    assert set(card.versions) == {"python", "classroomnet", "torch", "torchvision", "numpy", "safetensors"}
    assert {"mIoU", "accuracy", "trivial/mIoU", "trivial/accuracy", "IoU/CAR", "training/seconds"} <= set(card.metrics)


def test_a_mask_teacher_comes_with_precision(whole: Path) -> None:
    card = read_card(str(whole / "mask_rcnn"))
    assert card.class_names == MASK_CLASSES
    assert {"mIoU", "trivial/mIoU", "IoU/BACKGROUND", "IoU/VEHICLE", "AP50", "AP50/VEHICLE"} <= set(card.metrics)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_trained_teacher_loads_and_answers(lake: str, whole: Path, name: TeacherName) -> None:
    teacher = load_teacher(str(whole / name))
    stream = SampleStream(open_lake(lake), LoaderConfig(split="val", panoptic=True, shuffle=False, global_batch=2))
    samples = list(stream)
    target = teacher.predict(samples[:2], 16, 24)
    assert bool(target.valid.any())
    assert bool(target.values.float().isfinite().all())
    # What is examined from the files is what was examined in memory.
    metrics = teacher.confusion(samples).metrics(teacher.card.class_names)
    assert metrics["mIoU"] == pytest.approx(teacher.card.metrics["mIoU"])
    if name == "spvcnn":
        assert check_teacher(teacher, [samples[:2]], 16, 24).valid_share > 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lake", "/nowhere", "--out", "/nowhere/out"], "/nowhere: no lake here"),
        (
            ["--lake", "{lake}", "--out", "{out}", "--eval-split", "none"],
            "no split 'none', there are: teach, test, train, val",
        ),
        (["--lake", "{lake}", "--out", "{out}", "--eval-split", "teach"], "are in both splits, teach and teach"),
        (["--lake", "{lake}", "--out", "{out}", "--cameras", "SIDE_LEFT"], "has 0 images of SIDE_LEFT"),
    ],
)
def test_bad_arguments_give_status_2_and_one_line(
    lake: str, tmp_path: Path, words: list[str], message: str, call: Call
) -> None:
    assert message in call.refused(main, [word.format(lake=lake, out=tmp_path / "out") for word in words])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("teacher", "projected", "message"),
    [
        ("spvcnn", False, "not one of 2 images shows a point of the TOP laser"),
        ("mask_rcnn", True, "no sample of the evaluation split has the labels that this teacher is compared with"),
    ],
)
def test_what_cannot_be_measured_in_the_end_is_found_out_before_the_first_step(
    tmp_path: Path, teacher: TeacherName, projected: bool, message: str
) -> None:
    for split in ("teach", "val"):
        frames = make_frames(2, f"segment_{split}")
        for laser in (laser for frame in frames for laser in frame.lasers if not projected):
            for part in (laser.ri_return1, laser.ri_return2):
                part.camera_projection_compressed = int_matrix(np.zeros((ROWS, COLUMNS, 6), np.int32))
        source = write_frames(tmp_path / f"{split}.tfrecord", frames)
        build_files(str(tmp_path / "lake"), [source], BuildConfig(split=split, cameras=("FRONT",)))
    config = replace(settings(str(tmp_path / "lake"), tmp_path / "out"), teacher=teacher, image_size=(16, 16))
    with pytest.raises(TrainingError, match=message):
        run(config, Console(quiet=True))
    assert not list((tmp_path / "out").rglob("history.jsonl"))


def test_inside_a_ray_job_paths_must_be_absolute(lake: str, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.setenv("RAY_JOB_ID", "01000000")
    line = call.refused(main, ["--lake", lake, "--out", "teachers"])
    assert line.startswith("train_teachers: teachers: a relative path would lie in the job's throw-away folder")


def test_each_teacher_continues_with_the_image_size_of_its_own_run(
    lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = {"spvcnn": (96, 64), "mask_rcnn": (64, 32)}
    for name, size in began.items():
        checkpoint = Checkpoint(
            fingerprint={"image_size": str(size)},
            config="{}",
            step=1,
            cursor=1,
            seconds=0.0,
            objective={},
            optimizer={},
        )
        save_checkpoint(RunDir(str(tmp_path / name)), checkpoint)
    found = {}

    def trained(_config: object, _data: object, context: RunContext) -> tuple[None, None]:
        found[Path(context.folder).name] = context.fingerprint["image_size"]
        return None, None

    for function in ("train_spvcnn", "train_mask_rcnn"):
        monkeypatch.setattr(f"pipelines.train_teachers.{function}", trained)
    monkeypatch.setattr("pipelines.train_teachers.summary", lambda *_: "")
    run(replace(settings(lake, tmp_path), image_size="auto"), Console(quiet=True))
    assert found == {name: str(size) for name, size in began.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEACHERS)
def test_workers_of_ray_train_do_what_one_process_does(
    lake: str, whole: Path, tmp_path: Path, name: TeacherName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    config = replace(settings(lake, tmp_path), teacher=name, workers=2, device="cpu")
    assert run(config, Console(quiet=True)) == 0
    alone, together = logged(whole / name), logged(tmp_path / name)
    assert [line["learning_rate"] for line in together] == [line["learning_rate"] for line in alone]
    # Before any step the weights are the same; what is drawn for augmentation, dropout and of the few boxes to learn
    # from is each worker's own.
    for loss in (loss for loss in alone[0] if loss.startswith("loss/")):
        assert together[0][loss] == pytest.approx(alone[0][loss], rel=0.5), loss
    cards = read_card(str(tmp_path / name)), read_card(str(whole / name))
    assert cards[0].metrics.keys() == cards[1].metrics.keys()
    assert cards[0].metrics["training/samples_read"] == cards[1].metrics["training/samples_read"]


def test_other_settings_do_not_continue_a_run(lake: str, whole: Path) -> None:
    config = settings(lake, whole)
    other = replace(config, teacher="spvcnn", spvcnn=replace(config.spvcnn, voxel_m=0.4))
    with pytest.raises(ValueError, match=r"spvcnn/checkpoint\.pt: .* voxel_m 0\.5 instead of 0\.4"):
        run(other, Console(quiet=True))
