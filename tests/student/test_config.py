"""What a student is made of, and what it refuses to be made of."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from student.config import AnchorShapes, BranchSpec, StudentConfig, StudentError
from tests.student.students import TAUGHT, TINY

FOUR_LEVELS = AnchorShapes()


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        (TINY, (64, 96)),
        (replace(TINY, stride=8), (32, 48)),
        (StudentConfig.paper((), FOUR_LEVELS), (256, 384)),
    ],
)
def test_the_grid_is_the_image_over_the_stride(config: StudentConfig, grid: tuple[int, int]) -> None:
    assert config.grid(256, 384) == grid


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (TINY, (256, 400)),
        (TINY, (250, 384)),
        (replace(TINY, stride=8), (256, 352)),
        (StudentConfig.paper((), FOUR_LEVELS), (256, 388)),
    ],
)
def test_images_that_do_not_divide_are_refused(config: StudentConfig, size: tuple[int, int]) -> None:
    with pytest.raises(StudentError, match=f"images of {size[1]} x {size[0]} pixels do not divide"):
        config.grid(*size)


@given(height=st.integers(1, 2000), width=st.integers(1, 2000), stride=st.sampled_from([4, 8]))
def test_the_size_that_a_refusal_proposes_is_accepted(height: int, width: int, stride: int) -> None:
    config = replace(TINY, stride=stride)
    try:
        config.grid(height, width)
    except StudentError as error:
        found = re.search(r"like (\d+) x (\d+)$", str(error))
        assert found is not None
        proposed = int(found[2]), int(found[1])
        assert proposed >= (height, width)
        config.grid(*proposed)


def test_json_gives_the_same_configuration() -> None:
    for config in (TINY, TAUGHT, StudentConfig.paper(TAUGHT.branches, FOUR_LEVELS)):
        assert StudentConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({**json.loads(TINY.to_json()), "color": "red"}),
        json.dumps({**json.loads(TINY.to_json()), "stride": 5}),
        json.dumps({**json.loads(TINY.to_json()), "anchors": None}),
        json.dumps({**json.loads(TINY.to_json()), "branches": ["spvcnn"]}),
    ],
)
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(StudentError, match="not a student's configuration"):
        StudentConfig.from_json(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branches": (BranchSpec(name="one", kind="classification", channels=4),) * 2}, "expected different names"),
        ({"blocks": (1, 1)}, "expected blocks for each stage"),
        ({"stride": 2}, "expected stride 4 or 8"),
        ({"preset": "paper"}, "keeps stride 1"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(StudentError, match=message):
        replace(TINY, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "anchors",
    [
        {"sizes": ()},
        {"sizes": ((),)},
        {"sizes": ((8.0,), (16.0, 32.0))},
        {"sizes": ((0.0,),)},
        {"ratios": ()},
        {"ratios": (-1.0,)},
        {"ratios": (float("nan"),)},
    ],
)
def test_anchors_have_positive_shapes_as_many_on_each_level(anchors: dict[str, object]) -> None:
    with pytest.raises(StudentError, match="anchors: expected"):
        AnchorShapes(**anchors)  # type: ignore[arg-type]


def test_a_branch_cannot_have_a_name_that_torch_needs() -> None:
    with pytest.raises(StudentError, match="'train' is a name that torch needs"):
        StudentConfig(branches=(BranchSpec(name="train", kind="classification", channels=4),))
