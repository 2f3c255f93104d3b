"""Weights are read from any URL, as tensors and nothing else."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save_file

from teachers.spvnas.checkpoint import read_state_dict
from teachers.spvnas.state_dict_adapter import CheckpointError

STATE = {"a.weight": torch.arange(3.0), "a.bias": torch.zeros(1)}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
def test_a_state_dict_is_found_in_a_training_checkpoint(tmp_path: Path, wrap: object) -> None:
    assert callable(wrap)
    torch.save(wrap(STATE), tmp_path / "init")
    loaded = read_state_dict(str(tmp_path / "init"))
    assert loaded.keys() == STATE.keys()
    assert torch.equal(loaded["a.weight"], STATE["a.weight"])


def test_the_log_has_the_files_sha256(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "teachers.spvnas.checkpoint")
    torch.save(STATE, tmp_path / "init")
    read_state_dict(str(tmp_path / "init"))
    digest = hashlib.sha256((tmp_path / "init").read_bytes()).hexdigest()
    assert f"sha256 {digest}" in caplog.text


def test_a_url_does_as_well_as_a_path() -> None:
    with fsspec.open("memory://weights/init", "wb") as file:
        torch.save(STATE, file)
    assert read_state_dict("memory://weights/init").keys() == STATE.keys()


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "init.safetensors")
    assert torch.equal(read_state_dict(str(tmp_path / "init.safetensors"))["a.weight"], STATE["a.weight"])
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"torn.safetensors is not a safetensors file"):
        read_state_dict(str(tmp_path / "torn.safetensors"))


class Code:
    """Something that a pickle could run."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": Code()}, "not a file of torch.save that holds tensors alone"),
        ([1, 2], "expected tensors by name, got: list"),
        ({"epoch": 3}, "expected tensors by name, got: dict"),
    ],
)
def test_what_holds_no_state_dict_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "odd")
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(str(tmp_path / "odd"))


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(b"PK\x03\x04torn")
    with pytest.raises(CheckpointError, match=r"torn is not a file of torch\.save"):
        read_state_dict(str(tmp_path / "torn"))
