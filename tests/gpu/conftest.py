"""Tests of this folder compare a GPU with the CPU. Without one they are skipped, and say so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datalake.lake import Lake
from datalake.sample import Sample
from student.config import StudentConfig
from teachers.target import Target
from tests.pipelines.small_teachers import write_teachers
from tests.support.training_step import branches_of, open_pool, stream_of, targets_of

_HERE = Path(__file__).parent
IMAGE_SIZE = (96, 64)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them where there is no GPU."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here: what one computes cannot be compared"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU."""
    return torch.device("cuda")


@pytest.fixture(scope="session")
def samples(drive_lake: Lake) -> list[Sample]:
    """Eight small images of simulated drives, with their points."""
    for batch in stream_of(drive_lake, "train", IMAGE_SIZE, 8, points=True).loader():
        return batch
    raise AssertionError("an endless stream has a first batch")


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two small untrained teachers, `points` and `masks`."""
    return write_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="session")
def config(teachers: dict[str, str]) -> StudentConfig:
    """The default student of these teachers."""
    return StudentConfig(branches=branches_of(teachers))


@pytest.fixture(scope="session")
def grid(config: StudentConfig) -> tuple[int, int]:
    """Height and width of the imitation's grid."""
    return config.grid(IMAGE_SIZE[1], IMAGE_SIZE[0])


@pytest.fixture(scope="session")
def targets(teachers: dict[str, str], samples: list[Sample], grid: tuple[int, int]) -> dict[str, Target]:
    """What the teachers say of the samples, on the CPU."""
    return targets_of(open_pool(teachers, grid, torch.device("cpu")), samples)
