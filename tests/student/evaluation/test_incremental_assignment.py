"""The matching that grows by a detection, against every possible matching."""

from __future__ import annotations

from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from student.evaluation.incremental_assignment import IncrementalAssignment

# Weight of detection (row) and object (column); 0: they cannot be matched.
Weights = list[list[int]]
WEIGHTS = st.integers(1, 4).flatmap(
    lambda objects: st.lists(
        st.lists(st.sampled_from([0, 0, 3, 5, 6, 7, 10]), min_size=objects, max_size=objects), min_size=1, max_size=5
    )
)


def edges(row: list[int]) -> list[tuple[int, int]]:
    return [(number, weight) for number, weight in enumerate(row) if weight]


def best_sum(rows: Weights) -> int:
    """Return the largest sum of weights over all ways to give each row a column of its own, or none."""
    columns = list(range(len(rows[0]))) + [-1] * len(rows)
    return max(
        sum(row[column] for row, column in zip(rows, chosen, strict=True) if column >= 0)
        for chosen in set(permutations(columns, len(rows)))
    )


@given(WEIGHTS)
@settings(deadline=None, max_examples=60)
def test_the_sum_is_the_largest_after_each_detection(rows: Weights) -> None:
    matching = IncrementalAssignment()
    for count, row in enumerate(rows, start=1):
        matching.add(edges(row))
        pairs = matching.pairs
        assert len(set(pairs.values())) == len(pairs)
        assert all(rows[detection][number] for detection, number in pairs.items())
        assert sum(rows[detection][number] for detection, number in pairs.items()) == best_sum(rows[:count])


@given(WEIGHTS)
@settings(deadline=None, max_examples=60)
def test_what_add_returns_is_how_the_matching_changed(rows: Weights) -> None:
    matching = IncrementalAssignment()
    for number, row in enumerate(rows):
        before = matching.pairs
        found, wrong = matching.add(edges(row))
        after = matching.pairs
        assert set(after.values()) - set(before.values()) == ({found} if found is not None else set())
        assert {*before, number} - set(after) == ({wrong} if wrong is not None else set())
        assert set(before.values()) <= set(after.values())


def test_a_better_detection_displaces_the_one_that_came_before() -> None:
    matching = IncrementalAssignment()
    assert matching.add([(0, 6)]) == (0, None)
    assert matching.add([(0, 9)]) == (None, 0)
    assert matching.pairs == {1: 0}


def test_a_detection_moves_to_its_second_object_for_the_sum() -> None:
    matching = IncrementalAssignment()
    assert matching.add([(0, 9), (1, 8)]) == (0, None)
    assert matching.add([(0, 7)]) == (1, None)
    assert matching.pairs == {0: 1, 1: 0}
