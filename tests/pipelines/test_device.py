"""From a name on the command line to a device."""

from __future__ import annotations

import os

import pytest
import torch

from pipelines.device import decoding_threads, device_of
from teachers.card import TeacherError


def test_auto_is_the_gpu_if_there_is_one() -> None:
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_named_device_is_taken() -> None:
    assert device_of("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(TeacherError, match=f"^--device {name}: .*; give cpu, or leave it out$") as caught:
        device_of(name)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (4, 1), (9, 5), (16, 12), (64, 12)])
def test_a_gpu_does_not_wait_for_one_decoding_thread_and_a_cpu_is_left_to_the_network(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert decoding_threads(torch.device("cuda:1")) == threads
    assert decoding_threads(torch.device("cpu")) == 1
