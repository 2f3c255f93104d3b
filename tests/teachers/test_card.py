"""A teacher's folder is read as it was written, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from teachers.card import (
    CARD_FILE,
    WEIGHTS_FILE,
    ChannelStatistics,
    TeacherCard,
    TeacherError,
    read_card,
    read_weights,
    write_card,
    write_weights,
)
from tests.teachers.cards import lidar_card

STATE = {"a.weight": torch.arange(6.0).view(2, 3).t(), "a.count": torch.tensor(3)}


def write(url: str) -> TeacherCard:
    """Write a folder with `STATE`; return its card."""
    card = replace(
        lidar_card(ChannelStatistics(mean=(0.25,) * 12, variance=(1.5,) * 12)),
        metrics={"mIoU": 0.5, "trivial/mIoU": 0.1},
        versions={"torch": "2"},
        weights_sha256=write_weights(url, STATE),
    )
    write_card(url, card)
    return card


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Let `change` work on the card's JSON."""
    values = json.loads((folder / CARD_FILE).read_text())
    change(values)
    (folder / CARD_FILE).write_text(json.dumps(values))


@pytest.mark.parametrize("scheme", ["", "memory:/"])
def test_what_was_written_is_read_back(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}{tmp_path}/teacher"
    card = write(url)
    assert read_card(url) == card
    state = read_weights(url, card)
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_the_card_says_which_segments_a_student_should_be_kept_off(tmp_path: Path) -> None:
    write(str(tmp_path))
    data = read_card(str(tmp_path)).data
    assert data is not None
    assert data.all_segments == {"one", "two"}


@pytest.mark.parametrize("file", [CARD_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    write(str(tmp_path))
    (tmp_path / file).unlink()
    with pytest.raises(TeacherError, match=rf"{file}: no such file") as caught:
        read_weights(str(tmp_path), read_card(str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_damaged_weights_do_not_load(tmp_path: Path) -> None:
    card = write(str(tmp_path))
    content = bytearray((tmp_path / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(TeacherError, match="does not match the card"):
        read_weights(str(tmp_path), card)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda values: values.update(color="red"), "unknown fields color"),
        (lambda values: values["data"].update(frames=3), "data: unknown fields frames"),
        (lambda values: values.pop("kind"), "fields are missing: kind"),
        (
            lambda values: values.update(kind="vague"),
            "kind: expected one of regression, classification, detector, got: 'vague'",
        ),
        (lambda values: values.update(card_version=2), "card version 2 found"),
        (lambda values: values.update(channels=11), "expected statistics of 11 channels, got: 12"),
        (lambda values: values.update(channels="twelve"), "card.json: invalid literal"),
        (lambda values: values.update(metrics={"mIoU": "good"}), "could not convert"),
        (lambda values: values["statistics"]["variance"].pop(), "12 means but 11 variances"),
        (lambda values: values["statistics"].update(variance=[-1.0] * 12), "variances of at least 0"),
        (lambda values: values.update(kind="classification", statistics=None), "expected 12 class names, got: 19"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], complaint: str
) -> None:
    write(str(tmp_path))
    edit(tmp_path, change)
    with pytest.raises(TeacherError, match=complaint) as caught:
        read_card(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_what_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD_FILE).write_text(text)
    with pytest.raises(TeacherError, match=CARD_FILE):
        read_card(str(tmp_path))


def test_new_weights_under_an_old_card_are_refused(tmp_path: Path) -> None:
    card = write(str(tmp_path))
    write_weights(str(tmp_path), {"a.weight": torch.zeros(1)})
    with pytest.raises(TeacherError, match="belongs to another card"):
        read_weights(str(tmp_path), card)
