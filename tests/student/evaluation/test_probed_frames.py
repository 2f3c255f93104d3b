"""Labels of cells and frames are the sample's, features the frozen student's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from datalake.sample import Lidar, Panoptic, Sample
from student.evaluation.probed_frames import (
    UNKNOWN,
    ProbeTask,
    depth_task,
    frame_task,
    frozen_features,
    panoptic_task,
    probe_frames,
    random_student,
)
from tests.student.students import TAUGHT, build, samples

GRID = (16, 24)


def seen(sample: Sample, uv: list[tuple[float, float]], depth_m: list[float]) -> Sample:
    lidar = Lidar(
        points=torch.zeros(4, len(uv)),
        laser=torch.ones(len(uv), dtype=torch.int8),
        semantic_class=None,
        pixel_point=torch.arange(len(uv), dtype=torch.int32),
        pixel_uv=torch.tensor(uv).T,
        pixel_depth_m=torch.tensor(depth_m),
    )
    return replace(sample, lidar=lidar)


def test_a_cells_distance_is_the_mean_of_its_points() -> None:
    (one,) = samples(1)
    found = depth_task().labels(seen(one, [(0.5, 0.5), (3.9, 3.9), (4.0, 0.0), (95.9, 63.9)], [10, 20, 7, 30]), GRID)
    assert found[0, 0] == 15
    assert found[0, 1] == 7
    assert found[15, 23] == 30
    assert int(found.isnan().sum()) == 16 * 24 - 3
    assert bool(depth_task().labels(one, GRID).isnan().all())


def test_a_cells_class_is_that_of_its_middle() -> None:
    (one,) = samples(1)
    classes = torch.zeros(64, 96, dtype=torch.uint8)
    classes[2, 6] = 20
    classes[3, 10] = 9
    labelled = replace(one, panoptic=Panoptic(classes, torch.zeros(64, 96, dtype=torch.int32)))
    found = panoptic_task().labels(labelled, GRID)
    assert found[0, 1] == 20
    # Undefined, and what lies beside the middle, is nothing known.
    assert int((found != UNKNOWN).sum()) == 1
    assert bool((panoptic_task().labels(one, GRID) == UNKNOWN).all())


def test_a_frames_word_is_a_number_in_alphabetical_order() -> None:
    one, two, three = samples(3)
    task = frame_task("weather", {one.key: "sunny", two.key: "rain", three.key: None})
    assert [int(task.labels(each, GRID)) for each in (one, two, three)] == [1, 0, UNKNOWN]
    assert task.classes == 2


def test_features_are_the_trunks_and_what_each_branch_passes_on() -> None:
    student = build(TAUGHT).eval()
    images = torch.stack([one.image for one in samples(2)])
    found = frozen_features(student, images)
    with torch.no_grad():
        fine = student.backbone.trunk((images.float() / 255 - 0.45) / 0.25).fine
        parts = [student.backbone.free(fine), *(branch(fine)[1] for branch in student.backbone.branches.values())]
    torch.testing.assert_close(found, torch.cat([fine, *parts], 1))


def test_a_random_student_has_other_weights_and_touches_no_generator() -> None:
    state = torch.get_rng_state()
    one = random_student(TAUGHT, 3, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    weight = build(TAUGHT).backbone.fuse[0].weight
    assert not torch.equal(one.backbone.fuse[0].weight, weight)  # type: ignore[arg-type]
    again = random_student(TAUGHT, 3, torch.device("cpu")).backbone.fuse[0].weight
    assert torch.equal(one.backbone.fuse[0].weight, again)  # type: ignore[arg-type]


def bright(sample: Sample, grid: tuple[int, int]) -> Tensor:
    """Return whether a cell is of an object: those are much brighter than what is around them."""
    cells = torch.nn.functional.adaptive_avg_pool2d(sample.image.float().mean(0)[None], grid)[0]
    return (cells > 80).long()


def test_what_an_image_shows_is_read_off_a_student_and_a_task_without_labels_is_left_out() -> None:
    task = ProbeTask(name="bright", of="cell", classes=2, metric="mIoU", labels=bright)
    missing = frame_task("weather", {})
    some = samples(14)
    told: list[int] = []
    few, all_of_them = probe_frames(
        partial(frozen_features, build(TAUGHT).eval()),
        [task, missing],
        [some[:4], some[4:8]],
        [some[8:10]],
        [some[10:]],
        (0.01, 1.0),
        0,
        told.append,
    )
    assert (few.task, few.frames, all_of_them.frames) == ("bright", 1, 8)
    assert all_of_them.metrics["mIoU"] > all_of_them.guessed["mIoU"] + 0.1
    assert told[-1] == 14
