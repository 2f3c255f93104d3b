"""Several nodes, jobs, and what is lost of them in the middle."""

from __future__ import annotations

import socket
import time

import pytest

from benchmarks.cluster import differences
from pipelines.cluster import NoRayError, cluster

UNDISTURBED = [{"step": 0.0, "loss/box": 0.5, "loss/depth": 0.1}, {"step": 1.0, "loss/box": 0.25, "loss/depth": 0.0}]


def test_rounding_is_no_difference() -> None:
    found = [{**line, "loss/box": line["loss/box"] * 1.000001} for line in UNDISTURBED]
    assert differences(found, UNDISTURBED) == []


@pytest.mark.parametrize("found", [UNDISTURBED[:1], UNDISTURBED[1:], [*UNDISTURBED, UNDISTURBED[1]], []])
def test_gaps_and_repetitions_are_differences(found: list[dict[str, float]]) -> None:
    (problem,) = differences(found, UNDISTURBED)
    assert problem == f"steps in the history: {[line['step'] for line in found]}"


def test_another_loss_is_a_difference() -> None:
    found = [UNDISTURBED[0], {**UNDISTURBED[1], "loss/depth": 0.01}]
    assert differences(found, UNDISTURBED) == ["step 1: loss/depth is 0.01, undisturbed 0.0"]


def test_a_cluster_that_is_dead_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with (
        pytest.raises(NoRayError, match=f"RAY_ADDRESS {address}: no cluster answers .*; start it, or unset"),
        cluster(),
    ):
        pass
    assert time.monotonic() - started < 30
