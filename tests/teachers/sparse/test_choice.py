"""The backend is chosen by device and by what is there; the choice is said once."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from teachers.sparse import choice, torchsparse_backend, triton_backend
from teachers.sparse.choice import choose_backend
from teachers.sparse.grid import BackendError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _forget_choices() -> Iterator[None]:
    choice._choose.cache_clear()
    yield
    choice._choose.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, triton: str | None, torchsparse: str | None) -> None:
    """Let the two libraries have these obstacles."""
    for backend, obstacle in (
        (triton_backend.TritonBackend, triton),
        (torchsparse_backend.TorchsparseBackend, torchsparse),
    ):
        monkeypatch.setattr(backend, "obstacle", lambda _self, _device, obstacle=obstacle: obstacle)


def test_without_a_gpu_plain_runs_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "teachers.sparse.choice")
    assert choose_backend("auto", CPU).name == "plain"
    choose_backend("auto", CPU)
    assert caplog.messages == ["sparse backend on cpu: plain (the fastest without a GPU)"]


@pytest.mark.parametrize(
    ("triton", "torchsparse", "chosen", "reason"),
    [
        (None, None, "triton", "it is there"),
        ("no compiler", None, "torchsparse", "triton cannot run: no compiler"),
        (
            "no compiler",
            "not installed",
            "plain",
            "triton cannot run: no compiler; torchsparse cannot run: not installed",
        ),
    ],
)
def test_on_a_gpu_the_fastest_that_can_runs_and_the_log_says_why(
    triton: str | None,
    torchsparse: str | None,
    chosen: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "teachers.sparse.choice")
    pretend(monkeypatch, triton, torchsparse)
    assert choose_backend("auto", CUDA).name == chosen
    assert caplog.messages == [f"sparse backend on cuda: {chosen} ({reason})"]
    assert choose_backend("auto", CPU).name == "plain"


def test_a_backend_asked_for_by_name_is_that_one_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("plain", CUDA).name == "plain"
    pretend(monkeypatch, None, "it is not installed; install it")
    assert choose_backend("triton", CUDA).name == "triton"
    with pytest.raises(BackendError) as error:
        choose_backend("torchsparse", CPU)
    assert str(error.value) == (
        "sparse backend 'torchsparse' cannot run on cpu: it is not installed; install it; or use 'plain'"
    )
    with pytest.raises(ValueError, match="Expected backend 'auto', 'plain', 'triton', 'torchsparse', got: 'fast'"):
        choose_backend("fast", CPU)  # type: ignore[arg-type]


def test_triton_does_not_run_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="'triton' cannot run on cpu: Triton compiles for GPUs alone"):
        choose_backend("triton", CPU)


def test_a_triton_that_cannot_compile_is_an_obstacle_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError(f"{name}: Failed to find C compiler.\nPlease specify via CC")

    triton_backend._load.cache_clear()
    monkeypatch.setattr(triton_backend.importlib, "import_module", broken)
    obstacle = triton_backend.TritonBackend().obstacle(CUDA)
    triton_backend._load.cache_clear()
    assert obstacle == ("RuntimeError: teachers.sparse.implicit_gemm: Failed to find C compiler. Please specify via CC")


def test_a_torchsparse_that_breaks_on_import_is_an_obstacle_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError(f"{name}: no CUDA GPUs are available")

    torchsparse_backend._load.cache_clear()
    monkeypatch.setattr(torchsparse_backend.importlib, "import_module", broken)
    obstacle = torchsparse_backend.TorchsparseBackend().obstacle(CPU)
    torchsparse_backend._load.cache_clear()
    assert obstacle is not None
    assert "torchsparse cannot be imported (torchsparse: no CUDA GPUs are available); install" in obstacle
