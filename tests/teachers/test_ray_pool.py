"""Teachers in processes of their own say what they say in the student's, whatever happens to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray
import torch

from datalake.sample import Sample
from teachers.card import TeacherCard, TeacherError
from teachers.load import load_teacher
from teachers.pool import LocalPool
from teachers.ray_pool import ActorSpec, RayPool, teacher_actors
from teachers.target import Target
from teachers.teacher import Teacher
from tests.support.training_step import targets_of
from tests.teachers.cards import lidar_folder
from tests.teachers.test_pool import Swapper

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_driver")]

GRID = (16, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A lidar teacher's folder."""
    return lidar_folder(tmp_path_factory.mktemp("teacher") / "lidar")


@pytest.fixture(scope="module")
def employed_lidar(folder: str, ray_driver: None) -> Iterator[None]:  # noqa: ARG001 - it comes first
    """A lidar teacher at the post "lidar"."""
    with teacher_actors({"lidar": post(partial(load_teacher, folder))}):
        yield


def post(load: Callable[[str], Teacher]) -> ActorSpec:
    """Return a post that leaves room for others, however few CPUs there are."""
    return ActorSpec(load=load, num_cpus=0.2)


class Diary:
    """A teacher that notes each look in a file, with its process, and then waits."""

    def __init__(self, teacher: Teacher, file: Path, pause_s: float) -> None:
        self._teacher, self._file, self._pause_s = teacher, file, pause_s

    @property
    def card(self) -> TeacherCard:
        """The teacher's own."""
        return self._teacher.card

    def predict(self, samples: Sequence[Sample], height: int, width: int) -> Target:
        """Return the teacher's own answer."""
        with self._file.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(self._pause_s)
        return self._teacher.predict(samples, height, width)


def keep_diary(url: str, file: Path, pause_s: float, device: str) -> Teacher:
    """Load a teacher that keeps a diary."""
    return Diary(load_teacher(url, device), file, pause_s)


def swap(_device: str) -> Teacher:
    """Load a teacher that mixes up whom it answers."""
    return Swapper()


def entries(file: Path, count: int) -> list[int]:
    """Wait for so many looks, and return the processes that took them."""
    for _ in range(300):
        if file.exists() and len(pids := [int(line) for line in file.read_text().splitlines()]) >= count:
            return pids
        time.sleep(0.1)
    raise AssertionError(f"fewer than {count} looks in 30 s")


@pytest.mark.usefixtures("employed_lidar")
def test_it_makes_no_difference_where_the_teacher_runs(folder: str, drive_samples: list[Sample]) -> None:
    batches = [drive_samples[:3], drive_samples[3:]]
    local = [targets["lidar"] for _, targets in LocalPool({"lidar": load_teacher(folder)}, GRID).follow(batches)]
    pool = RayPool(["lidar"], GRID)
    assert pool.cards == {"lidar": load_teacher(folder).card}
    remote = [targets["lidar"] for _, targets in pool.follow(batches)]
    for ours, theirs in zip(local, remote, strict=True):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.valid, theirs.valid)
        assert torch.equal(ours.values, theirs.values)


def test_a_killed_teacher_costs_time_but_no_data(folder: str, drive_samples: list[Sample], tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    batches = [[sample] for sample in drive_samples]
    local = [targets["lidar"] for _, targets in LocalPool({"lidar": load_teacher(folder)}, GRID).follow(batches)]
    with teacher_actors({"mortal": post(partial(keep_diary, folder, diary, 0.3))}):
        pool = RayPool(["mortal"], GRID, window=3)
        remote = []
        for number, (_, targets) in enumerate(pool.follow(batches)):
            remote.append(targets["mortal"])
            if number == 1:
                # The third look is under way, or the fourth.
                os.kill(entries(diary, 3)[-1], signal.SIGKILL)
    assert len(set(entries(diary, 7))) == 2
    assert [target.keys for target in remote] == [target.keys for target in local]
    assert all(torch.equal(ours.values, theirs.values) for ours, theirs in zip(local, remote, strict=True))


def test_a_slow_student_has_no_more_than_a_window_in_flight(
    folder: str, drive_samples: list[Sample], tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    with teacher_actors({"writer": post(partial(keep_diary, folder, diary, 0.0))}):
        pool = RayPool(["writer"], GRID, window=2)
        for trained, (_, targets) in enumerate(pool.follow([[sample] for sample in drive_samples])):
            handed_in = min(trained + 2, 6)
            assert len(entries(diary, handed_in)) == handed_in
            time.sleep(0.2)
            assert len(entries(diary, handed_in)) == handed_in
            assert targets["writer"].valid.any()


def test_answers_about_other_samples_are_noticed(drive_samples: list[Sample]) -> None:
    with teacher_actors({"swapper": post(swap)}):
        pool = RayPool(["swapper"], GRID)
        with pytest.raises(TeacherError, match="swapper answered about other samples than it was asked"):
            targets_of(pool, drive_samples[:2])
    with pytest.raises(TeacherError, match="no actor of teacher swapper in this Ray job"):
        RayPool(["swapper"], GRID)


@pytest.mark.usefixtures("employed_lidar")
def test_a_teacher_that_cannot_answer_says_why_in_one_line(drive_samples: list[Sample]) -> None:
    pool = RayPool(["lidar"], GRID)
    blind = [replace(drive_samples[0], lidar=None)]
    with pytest.raises(TeacherError, match=r"^teacher lidar: .*loaded without points") as caught:
        targets_of(pool, blind)
    assert "\n" not in str(caught.value)
    assert targets_of(pool, drive_samples[:1])["lidar"].valid.any()


def test_a_teacher_that_does_not_load_says_why_in_one_line(tmp_path: Path) -> None:
    missing = post(partial(load_teacher, str(tmp_path)))
    with (
        pytest.raises(TeacherError, match=r"^teacher missing .*card\.json: no such file") as caught,
        teacher_actors({"missing": missing}),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_what_the_cluster_lacks_is_not_waited_for(folder: str) -> None:
    greedy = ActorSpec(load=partial(load_teacher, folder), num_gpus=0.5)
    with (
        pytest.raises(TeacherError, match=r"greedy needs 1 CPUs and 0\.5 GPUs, which no node"),
        teacher_actors({"greedy": greedy}),
    ):
        pass


@ray.remote(num_cpus=0.2)
def study(batch: list[Sample]) -> list[bool]:
    """Ask the teacher from another process of the job, as a training worker does."""
    pool = RayPool(["lidar"], GRID)
    return [bool(targets["lidar"].valid.any()) for _, targets in pool.follow([batch])]


@pytest.mark.usefixtures("employed_lidar")
def test_every_worker_of_the_job_can_ask(drive_samples: list[Sample]) -> None:
    assert ray.get(study.remote(drive_samples[:1])) == [True]


def test_only_the_remote_teacher_needs_ray() -> None:
    folder = Path(__file__).parents[2] / "teachers"
    files = (file.relative_to(folder.parent).with_suffix("") for file in folder.rglob("*.py"))
    modules = sorted(".".join(file.parts) for file in files if file.stem not in ("__init__", "ray_pool"))
    assert {"teachers.sanity", "teachers.mask_rcnn.teacher"} <= set(modules)
    imports = "; ".join(f"import {module}" for module in modules)
    code = f"import sys; {imports}; assert not {{'ray', 'torchsparse'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder.parent)
