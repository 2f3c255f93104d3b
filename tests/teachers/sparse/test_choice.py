"""The backend is chosen by device and by what is there; the choice is said once."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from teachers.sparse import choice, torchsparse_backend
from teachers.sparse.choice import choose_backend
from teachers.sparse.grid import BackendError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _forget_choices() -> Iterator[None]:
    choice._choose.cache_clear()
    yield
    choice._choose.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, obstacle: str | None) -> None:
    monkeypatch.setattr(torchsparse_backend.TorchsparseBackend, "obstacle", lambda _self, _device: obstacle)


def test_without_a_gpu_plain_runs_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "teachers.sparse.choice")
    assert choose_backend("auto", CPU).name == "plain"
    choose_backend("auto", CPU)
    assert caplog.messages == ["sparse backend on cpu: plain (the fastest without a GPU)"]


def test_on_a_gpu_torchsparse_runs_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    assert choose_backend("auto", CUDA).name == "torchsparse"
    assert choose_backend("auto", CPU).name == "plain"


def test_on_a_gpu_plain_steps_in_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "teachers.sparse.choice")
    pretend(monkeypatch, "it is not installed")
    assert choose_backend("auto", CUDA).name == "plain"
    assert caplog.messages == ["sparse backend on cuda: plain (torchsparse cannot run: it is not installed)"]


def test_a_backend_asked_for_by_name_is_that_one_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("plain", CUDA).name == "plain"
    pretend(monkeypatch, "it is not installed; install it")
    with pytest.raises(BackendError) as error:
        choose_backend("torchsparse", CPU)
    assert str(error.value) == (
        "sparse backend 'torchsparse' cannot run on cpu: it is not installed; install it; or use 'plain'"
    )
    with pytest.raises(ValueError, match="Expected backend 'auto', 'plain' or 'torchsparse', got: 'fast'"):
        choose_backend("fast", CPU)  # type: ignore[arg-type]


def test_a_torchsparse_that_breaks_on_import_is_an_obstacle_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError(f"{name}: no CUDA GPUs are available")

    torchsparse_backend._load.cache_clear()
    monkeypatch.setattr(torchsparse_backend.importlib, "import_module", broken)
    obstacle = torchsparse_backend.TorchsparseBackend().obstacle(CPU)
    torchsparse_backend._load.cache_clear()
    assert obstacle is not None
    assert "torchsparse cannot be imported (torchsparse: no CUDA GPUs are available); install" in obstacle
