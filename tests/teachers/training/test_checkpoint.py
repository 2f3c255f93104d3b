"""Checkpoints are whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from teachers.training.checkpoint import Checkpoint, Plain, check_identity, load_checkpoint, save_checkpoint
from training.errors import TrainingError


def a_checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        identity={"seed": 3, "lake": "s3://lake"},
        step=step,
        samples_read=step * 4,
        seconds=1.5,
        model={"weight": torch.full((2, 2), float(step))},
        optimiser={"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        rng=torch.get_rng_state(),
        rng_cuda=[],
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.pt"
    saved = a_checkpoint(7)
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert (loaded.identity, loaded.step, loaded.samples_read, loaded.seconds) == (saved.identity, 7, 28, 1.5)
    assert torch.equal(loaded.model["weight"], saved.model["weight"])
    assert torch.equal(loaded.rng, saved.rng)
    assert loaded.optimiser == saved.optimiser


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "checkpoint.pt") is None


def test_dying_while_saving_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, a_checkpoint(1))
    whole = torch.save

    def dies_half_way(values: Any, file: Any) -> None:
        whole(values, file)
        file.truncate(file.tell() // 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies_half_way)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, a_checkpoint(2))
    monkeypatch.undo()
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert loaded.step == 1
    save_checkpoint(path, a_checkpoint(3))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, a_checkpoint(1))
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a training checkpoint.*delete it to start again"):
        load_checkpoint(path)


def test_another_run_may_not_continue_it() -> None:
    here: dict[str, Plain] = {"seed": 3, "lake": "s3://lake", "only_here": 1}
    with pytest.raises(TrainingError, match="only_here 1 instead of None, seed 3 instead of 4;"):
        check_identity(Path("checkpoint.pt"), here, {"seed": 4, "lake": "s3://lake"})
    check_identity(Path("checkpoint.pt"), here, dict(here))
