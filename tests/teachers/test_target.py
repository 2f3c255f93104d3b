"""The dense and the sparse form say the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake.sample import SampleKey
from teachers.card import TeacherError
from teachers.target import SparseTarget, Target


def keys(batch: int) -> tuple[SampleKey, ...]:
    """Return as many keys."""
    return tuple(SampleKey("segment", number, "FRONT") for number in range(batch))


def random_target(seed: int, *, classes: bool, share: float = 0.5, confident: bool = True) -> Target:
    """Return a target of 2 samples, 3 channels, 4 x 5 cells, of which `share` are valid."""
    random = torch.Generator().manual_seed(seed)
    valid = torch.rand(2, 1, 4, 5, generator=random) < share
    if classes:
        values = torch.randint(0, 4, (2, 1, 4, 5), generator=random) * valid
    else:
        values = torch.randn(2, 3, 4, 5, generator=random) * valid
    confidence = torch.rand(2, 1, 4, 5, generator=random) * valid if confident else None
    return Target(keys(2), values, valid, confidence)


@given(st.integers(0, 1000), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_there_and_back_is_the_same(seed: int, classes: bool, share: float, confident: bool) -> None:
    target = random_target(seed, classes=classes, share=share, confident=confident)
    back = target.to_sparse().to_dense()
    assert back.keys == target.keys
    assert back.kind == target.kind
    assert torch.equal(back.valid, target.valid)
    # Half precision keeps 11 bits.
    torch.testing.assert_close(back.values, target.values, rtol=2**-11, atol=1e-7)
    if target.confidence is None:
        assert back.confidence is None
    else:
        assert back.confidence is not None
        torch.testing.assert_close(back.confidence, target.confidence, rtol=2**-11, atol=1e-7)


@given(st.integers(0, 1000), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_rounding_is_going_there_and_back(seed: int, classes: bool, share: float, confident: bool) -> None:
    target = random_target(seed, classes=classes, share=share, confident=confident)
    # What is not valid may be anything: it does not travel.
    spoiled = torch.tensor(-7 if classes else torch.nan, dtype=target.values.dtype)
    target = replace(target, values=target.values.where(target.valid, spoiled))
    found, sound = target.rounded()
    expected = target.to_sparse().to_dense()
    assert bool(sound)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.valid, expected.valid)
    assert (found.confidence is None) == (expected.confidence is None)
    if found.confidence is not None and expected.confidence is not None:
        assert torch.equal(found.confidence, expected.confidence)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e5])
def test_rounding_tells_that_a_value_cannot_travel(value: float) -> None:
    target = random_target(0, classes=False, share=1.0)
    target.values[1, 2, 3, 4] = value
    assert not bool(target.rounded()[1])


def test_a_second_trip_changes_nothing_more() -> None:
    once = random_target(1, classes=False).to_sparse().to_dense()
    assert torch.equal(once.to_sparse().to_dense().values, once.values)


def test_rows_stand_in_the_order_of_their_cells() -> None:
    sparse = random_target(2, classes=False).to_sparse()
    dense = sparse.to_dense()
    assert sparse.index is not None
    sample, cell = sparse.index[3] // 20, sparse.index[3] % 20
    assert torch.equal(dense.values[sample, :, cell // 5, cell % 5], sparse.values[3].float())


def test_what_travels_is_small() -> None:
    lidar = random_target(0, classes=False, confident=False).to_sparse()
    assert lidar.bytes == len(lidar.values) * (3 * 2 + 8)
    masks = random_target(0, classes=True, share=1.0).to_sparse()
    assert masks.bytes == 2 * 4 * 5 * (1 + 2)


def test_cells_that_are_not_valid_travel_as_nothing() -> None:
    target = random_target(3, classes=False)
    spoiled = Target(target.keys, target.values.where(target.valid, torch.tensor(torch.nan)), target.valid)
    back = spoiled.to_sparse().to_dense()
    assert back.values.isfinite().all()


def test_one_hot_marks_the_class_of_valid_cells() -> None:
    target = random_target(4, classes=True)
    hot = target.one_hot(4)
    assert hot.kind == "regression"
    assert hot.values.shape == (2, 4, 4, 5)
    assert torch.equal(hot.values.sum(1, keepdim=True), target.valid.float())
    assert torch.equal(hot.values.argmax(1, keepdim=True) * target.valid, target.values)
    with pytest.raises(TeacherError, match="Expected classes below 2"):
        target.one_hot(2)
    with pytest.raises(TeacherError, match="this target is one of regression"):
        random_target(4, classes=False).one_hot(4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 7e4])
def test_values_that_half_precision_cannot_say_are_refused(value: float) -> None:
    target = random_target(5, classes=False, share=1.0)
    target.values[0, 0, 0, 0] = value
    with pytest.raises(TeacherError, match="NaN, infinite or beyond"):
        target.to_sparse()


def test_classes_that_one_byte_cannot_say_are_refused() -> None:
    target = random_target(5, classes=True, share=1.0)
    target.values[0, 0, 0, 0] = 256
    with pytest.raises(TeacherError, match="within 0 … 255"):
        target.to_sparse()


@pytest.mark.parametrize(
    ("values", "valid", "confidence"),
    [
        (torch.zeros(1, 3, 4, 5, dtype=torch.float64), torch.zeros(1, 1, 4, 5, dtype=torch.bool), None),
        (torch.zeros(1, 2, 4, 5, dtype=torch.int64), torch.zeros(1, 1, 4, 5, dtype=torch.bool), None),
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5, dtype=torch.bool), None),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 1, 5, 4, dtype=torch.bool), None),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 1, 4, 5), None),
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 1, 4, 5, dtype=torch.bool), torch.zeros(1, 3, 4, 5)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    values: torch.Tensor, valid: torch.Tensor, confidence: torch.Tensor | None
) -> None:
    with pytest.raises(TeacherError, match="Expected"):
        Target(keys(1), values, valid, confidence)


def test_a_sparse_target_of_too_few_rows_is_refused() -> None:
    with pytest.raises(TeacherError, match="Expected values"):
        SparseTarget(keys(1), (1, 3, 4, 5), torch.zeros(2, 3, dtype=torch.float16), torch.arange(3), None)
