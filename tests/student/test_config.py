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
        (replace(TINY, anchors=AnchorShapes(sizes=((8,), (9,), (10,), (11,), (12,)))), (256, 352)),
        (StudentConfig.paper((), FOUR_LEVELS), (256, 388)),
    ],
)
def test_images_that_do_not_divide_are_refused(config: StudentConfig, size: tuple[int, int]) -> None:
    with pytest.raises(StudentError, match=f"images of {size[1]} x {size[0]} pixels do not divide"):
        config.grid(*size)


@given(height=st.integers(1, 2000), width=st.integers(1, 2000), levels=st.sampled_from([4, 5]))
def test_the_size_that_a_refusal_proposes_is_accepted(height: int, width: int, levels: int) -> None:
    config = replace(TINY, anchors=AnchorShapes(sizes=((8,),) * levels))
    try:
        config.grid(height, width)
    except StudentError as error:
        found = re.search(r"like (\d+) x (\d+)$", str(error))
        assert found is not None
        proposed = int(found[2]), int(found[1])
        assert proposed >= (height, width)
        config.grid(*proposed)


def test_json_gives_the_same_configuration() -> None:
    dense = replace(TINY, anchors=replace(FOUR_LEVELS, half_cells=True))
    for config in (TINY, TAUGHT, StudentConfig.paper(TAUGHT.branches, FOUR_LEVELS), dense):
        assert StudentConfig.from_json(config.to_json()) == config


# As version 0.1 wrote it (09e13cd), for both of its presets.
OLD = {
    "preset": "classroom", "branches": [{"name": "colors", "kind": "continuous", "channels": 3}], "stride": 4,
    "stages": [24, 32, 64, 128, 160], "blocks": [1, 2, 2, 1], "width": 48, "branch_width": 32, "feed": "both",
    "norm": "group", "head_width": 256,
    "anchors": {"sizes": [[8, 12], [18, 27], [40, 60], [90, 136]], "ratios": [0.8, 2.8]},
    "max_depth_m": 75.0, "rpn_batch": 256, "roi_batch": 64, "proposals": 200, "min_score": 0.02, "detections": 100,
}  # fmt: skip
OLD_PAPER = {
    **OLD, "preset": "paper", "stride": 1, "stages": [64, 64, 96], "blocks": [2, 2], "width": 96, "branch_width": 48,
    "feed": "imitation", "norm": "batch", "head_width": 1024, "roi_batch": 512, "proposals": 1000, "min_score": 0.05,
}  # fmt: skip


def test_a_configuration_of_version_0_1_is_read() -> None:
    branches = (BranchSpec(name="colors", kind="regression", channels=3),)
    assert StudentConfig.from_json(json.dumps(OLD)) == StudentConfig(branches=branches)
    assert StudentConfig.from_json(json.dumps(OLD_PAPER)) == StudentConfig.paper(branches, FOUR_LEVELS)
    narrow = StudentConfig.from_json(json.dumps({**OLD, "width": 16, "feed": "imitation"}))
    assert narrow == StudentConfig(branches=branches, width=16, feed="imitation")


@pytest.mark.parametrize("change", [{"stride": 8}, {"feed": "hidden"}])
def test_what_version_0_1_alone_could_build_is_refused_in_one_line(change: dict[str, object]) -> None:
    with pytest.raises(StudentError, match=r"are not read any more; use version 0\.1") as refused:
        StudentConfig.from_json(json.dumps({**OLD, **change}))
    assert "\n" not in str(refused.value)


def test_the_papers_student_differs_in_what_the_paper_says() -> None:
    paper, ours = StudentConfig.paper(), StudentConfig()
    assert (paper.stride, paper.branch_kernel, paper.rpn_positive_iou, paper.depth_sees_box, paper.depth_beta) == (
        1, 3, 0.7, False, 1.0,
    )  # fmt: skip
    assert (ours.stride, ours.branch_kernel, ours.rpn_positive_iou, ours.depth_sees_box, ours.depth_beta) == (
        4, 1, 0.5, True, 0.05,
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({**json.loads(TINY.to_json()), "color": "red"}),
        json.dumps({**json.loads(TINY.to_json()), "stride": 4}),
        json.dumps({**json.loads(TINY.to_json()), "feed": "hidden"}),
        json.dumps({**json.loads(TINY.to_json()), "norm": "layer"}),
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
        ({"stages": (8, 8, 8), "blocks": (1, 1)}, "trunk fpn: expected 5 stages"),
        ({"trunk": "stride1"}, "trunk stride1: expected 3 stages"),
        ({"branch_kernel": 2}, "branch_kernel 2: expected an odd number"),
        ({"feed": "hidden"}, "feed: expected one of imitation, both, got: 'hidden'"),
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
