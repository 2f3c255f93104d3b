"""Voxels are found by position, whatever their order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teachers.sparse.kernel_map import coarser_level, submanifold_map
from teachers.sparse.level import (
    MAX_BATCH,
    MAX_COORDINATE,
    CoordinateError,
    Level,
    check_coordinates,
    key_step,
    occupied,
    pack,
    unpack,
)

AXIS = st.integers(-MAX_COORDINATE, MAX_COORDINATE)
VOXEL = st.tuples(st.integers(0, MAX_BATCH), AXIS, AXIS, AXIS)


@settings(deadline=None, max_examples=50)
@given(st.lists(VOXEL, min_size=1, max_size=20))
def test_keys_sort_like_coordinates_and_return_them(voxels: list[tuple[int, int, int, int]]) -> None:
    keys = pack(torch.tensor(voxels))
    assert unpack(keys).tolist() == [list(voxel) for voxel in voxels]
    assert unpack(keys.sort().values).tolist() == sorted(list(voxel) for voxel in voxels)


@settings(deadline=None, max_examples=50)
@given(VOXEL, st.tuples(*[st.integers(-32, 32)] * 3))
def test_a_step_of_the_key_is_a_step_of_the_voxel(voxel: tuple[int, ...], step: tuple[int, int, int]) -> None:
    moved = [voxel[0], *(a + b for a, b in zip(voxel[1:], step, strict=True))]
    assert int(pack(torch.tensor(voxel)) + key_step(*step)) == int(pack(torch.tensor(moved)))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), stride=st.sampled_from([1, 2, 6]), filled=st.sampled_from([0.0, 0.1, 0.9]))
def test_columns_hold_the_rows_of_the_voxels_above_each_other(seed: int, stride: int, filled: float) -> None:
    random = torch.Generator().manual_seed(seed)
    coordinates = (torch.rand(2, 5, 5, 5, generator=random) < filled).nonzero()
    coordinates = coordinates[torch.randperm(len(coordinates), generator=random)].int()
    coordinates[:, 1:] *= stride
    row = {tuple(voxel): i for i, voxel in enumerate(coordinates.tolist())}
    corners = torch.cartesian_prod(torch.arange(2), *[torch.arange(-1, 6)] * 3) * torch.tensor([1, *[stride] * 3])

    found = Level.of(coordinates).find_columns(pack(corners), 3, stride)

    expected = [[row.get((b, x, y, z + i * stride), -1) for b, x, y, z in corners.tolist()] for i in range(3)]
    assert found.tolist() == expected


def test_all_columns_of_a_kernel_are_searched_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[int] = []
    search = torch.searchsorted

    def counted(keys: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        searches.append(wanted.numel())
        return search(keys, wanted)

    monkeypatch.setattr(torch, "searchsorted", counted)
    level = Level.of(torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]]))
    submanifold_map(level, 1, 3)
    # Four columns beside the voxel's own, in which only what lies above it is new.
    assert searches == [2 * 4, 2]


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        ([[0, 1, 2, 3], [0, 1, 2, 3]], "a voxel appears twice"),
        ([[-1, 0, 0, 0]], "Expected batch numbers 0 to 511, got: -1 to -1"),
        ([[MAX_BATCH + 1, 0, 0, 0]], "Expected batch numbers 0 to 511, got: 512 to 512"),
        ([[0, 0, MAX_COORDINATE + 1, 0]], f"Expected voxels within {MAX_COORDINATE} of the origin"),
        ([[0, 0, 0]], r"Expected int32 or int64 \[N, 4\] \(batch, x, y, z\), got: torch.int64 \[1, 3\]"),
    ],
)
def test_coordinates_that_keys_cannot_hold_are_refused(voxels: list[list[int]], message: str) -> None:
    with pytest.raises(CoordinateError, match=message):
        Level.of(torch.tensor(voxels))


def test_fractions_are_refused() -> None:
    with pytest.raises(CoordinateError, match=r"got: torch.float32 \[1, 4\]"):
        check_coordinates(torch.zeros(1, 4))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 80), st.integers(1, 40))
def test_coarser_levels_whose_voxels_were_counted_before_are_the_same(seed: int, points: int, side: int) -> None:
    random = torch.Generator().manual_seed(seed)
    voxels = torch.cat(
        [
            torch.randint(0, 3, (points, 1), generator=random),
            torch.randint(-side, side, (points, 3), generator=random),
        ],
        1,
    )
    known, row = occupied(voxels, (2, 4, 8))
    expected = voxels.unique(dim=0)
    assert torch.equal(known.coordinates.long(), expected)
    assert torch.equal(known.coordinates[row].long(), voxels)
    unknown = Level.of(known.coordinates)
    for stride in (1, 2, 4):
        (known, *places), (unknown, *expected_places) = (coarser_level(level, stride, 2) for level in (known, unknown))
        assert torch.equal(known.coordinates, unknown.coordinates)
        assert torch.equal(known.keys, unknown.keys)
        for found, right in zip(places, expected_places, strict=True):
            assert torch.equal(found, right)
