"""The learning rate, step by step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import TrainingError
from training.schedule import Schedule


def test_the_rate_rises_evenly_to_its_peak() -> None:
    schedule = Schedule(peak=1.0, steps=100, warmup_steps=4)
    assert [schedule.rate(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_it_falls_as_half_a_cosine() -> None:
    schedule = Schedule(peak=2.0, steps=101, warmup_steps=0, final_share=0.0)
    expected = [1 + math.cos(math.pi * step / 100) for step in range(101)]
    assert [schedule.rate(step) for step in range(101)] == pytest.approx(expected, abs=1e-12)


@given(
    steps=st.integers(2, 400), warmup=st.floats(0, 0.99), peak=st.floats(1e-6, 1.0), final_share=st.floats(0.001, 0.5)
)
def test_it_rises_falls_and_never_dies(steps: int, warmup: float, peak: float, final_share: float) -> None:
    warmup_steps = int(warmup * steps)
    schedule = Schedule(peak=peak, steps=steps, warmup_steps=warmup_steps, final_share=final_share)
    rates = [schedule.rate(step) for step in range(steps)]
    assert rates[: warmup_steps + 1] == sorted(rates[: warmup_steps + 1])
    assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True)
    assert max(rates) == rates[warmup_steps] == pytest.approx(peak)
    assert min(rates) > 0
    if steps - warmup_steps > 1:
        assert rates[-1] == pytest.approx(peak * final_share)


@pytest.mark.parametrize("values", [{"warmup_steps": 10}, {"peak": 0.0}, {"peak": math.nan}])
def test_impossible_schedules_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(TrainingError, match="expected"):
        Schedule(**{"peak": 1.0, "steps": 10, "warmup_steps": 0, **values})  # type: ignore[arg-type]
