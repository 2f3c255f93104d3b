"""Teachers answer on a GPU as on a CPU."""

from __future__ import annotations

import pytest
import torch

from datalake.sample import Sample
from teachers.sparse.choice import BackendName, choose_backend
from teachers.sparse.grid import BackendError
from tests.support.data import find_data
from tests.support.device_checks import backends_agree, lidar_teacher, mask_teacher, spvnas_golden
from tests.support.training_step import sparse_backends

pytestmark = pytest.mark.integration


@pytest.fixture(params=sparse_backends())
def backend(request: pytest.FixtureRequest, device: torch.device) -> BackendName:
    """Each backend of sparse convolutions that runs here."""
    name: BackendName = request.param
    try:
        choose_backend(name, device)
    except BackendError as error:
        pytest.skip(str(error))
    return name


def test_spvnas_gives_what_the_authors_code_gave(device: torch.device, backend: BackendName) -> None:
    if find_data("spvnas_official_golden.npz") is None:
        pytest.skip("the official network's outputs are missing: no spvnas_official_golden.npz")
    for check in spvnas_golden(device, backend):
        assert check.passed, check


def test_the_lidar_teacher_answers_as_on_a_cpu(
    teachers: dict[str, str], samples: list[Sample], grid: tuple[int, int], device: torch.device, backend: BackendName
) -> None:
    for check in lidar_teacher(teachers["points"], samples, grid, device, backend):
        assert check.passed, check


def test_a_backend_answers_as_plain_does_however_many_clouds_go_together(
    teachers: dict[str, str], samples: list[Sample], grid: tuple[int, int], device: torch.device, backend: BackendName
) -> None:
    for check in backends_agree(teachers["points"], samples, grid, device, backend):
        assert check.passed, check


def test_the_mask_teacher_answers_as_on_a_cpu(
    teachers: dict[str, str], samples: list[Sample], grid: tuple[int, int], device: torch.device
) -> None:
    for check in mask_teacher(teachers["masks"], samples, grid, device):
        assert check.passed, check
