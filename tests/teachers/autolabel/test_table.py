"""What is written of an image, and what a training reads of it."""

from __future__ import annotations

from dataclasses import replace

import duckdb
import numpy as np
import pytest
import torch

from datalake.commit import LakeError
from datalake.derived_table import open_derived_table
from datalake.lake import Lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.sample import Sample
from datalake.show import save_frame
from datalake.verify import verify
from teachers.autolabel.lidar_objects import LidarObjects
from teachers.autolabel.table import AutoLabels, rows_of, table_name
from teachers.card import TeacherError
from tests.drives import DRIVE_CAMERAS
from tests.student.students import sample as one_sample
from tests.teachers.autolabel.evidences import evidence
from tests.teachers.autolabel.hand_labels import FOUND, NOTHING, VEHICLES, label


def first_sample(lake: Lake, size: tuple[int, int] = (96, 64)) -> Sample:
    config = LoaderConfig(cameras=DRIVE_CAMERAS, points=False, shuffle=False, global_batch=1, image_size=size)
    return next(iter(SampleStream(lake, config)))


def test_sure_detections_are_labels_unsure_ones_are_ignored_and_others_are_background() -> None:
    rows = rows_of(replace(one_sample(), record_size=(192, 128)), FOUND, NOTHING, VEHICLES)
    assert [row["ignored"] for row in rows] == [False, True, False]
    assert [row["score"] for row in rows] == pytest.approx([0.9, 0.5, 0.75])
    # The record's image is twice as large as the one that the teachers saw.
    assert [rows[1][edge] for edge in ("x0", "y0", "x1", "y1")] == [60, 20, 120, 80]
    assert rows[0]["depth_m"] == 15.0
    assert rows[0]["agreement"] == pytest.approx(0.9)


def test_a_frame_without_lidar_is_judged_by_the_masks_alone_and_never_agreed_upon() -> None:
    sample = replace(one_sample(), record_size=(96, 64))
    rows = rows_of(sample, evidence({"mask_score": 0.75}, {"mask_score": 0.85}, lidar=False), NOTHING, VEHICLES)
    # The threshold of frames with lidar is .7.
    assert [row["ignored"] for row in rows] == [True, False]
    assert {row["agreement"] for row in rows} == {None}
    assert {row["depth_m"] for row in rows} == {None}


def test_of_a_type_that_is_not_calibrated_nobody_knows_what_is_background() -> None:
    sample = replace(one_sample(), record_size=(96, 64))
    (row,) = rows_of(sample, evidence({"types": 2, "mask_score": 0.06}), NOTHING, VEHICLES)
    assert (row["type"], row["ignored"], row["score"]) == ("PEDESTRIAN", True, None)


def test_what_the_lidar_alone_is_sure_of_is_ignored_unless_a_detection_is_there() -> None:
    sample = replace(one_sample(), record_size=(192, 128))
    boxes = np.array([[70, 30, 80, 50], [32, 12, 58, 38], [31, 11, 36, 16], [0, 50, 9, 60]], np.float32)
    alone = LidarObjects(
        boxes,
        np.array([2, 1, 1, 2]),
        np.array([0.6, 0.9, 0.9, 0.1], np.float32),
        np.full(4, 25.0, np.float32),
        np.full(4, 12, np.int32),
    )
    # The second and third lie where the mask teacher has found something, the last is not sure.
    (row,) = [row for row in rows_of(sample, FOUND, alone, VEHICLES) if row.get("mask_score") is None]
    assert (row["type"], row["ignored"], row["depth_m"], row["depth_points"]) == ("PEDESTRIAN", True, 25.0, 12)
    assert [row[edge] for edge in ("x0", "y0", "x1", "y1")] == [140, 60, 160, 100]


def test_a_training_reads_labels_with_weights_and_confirmed_distances_alone(own_lake: Lake) -> None:
    labels = label(own_lake)
    # Twice the size that they were made at.
    objects = labels.objects(first_sample(own_lake, (192, 128)))
    assert objects.boxes.tolist() == [[0, 0, 40, 40], [80, 40, 100, 60]]
    assert objects.classes.tolist() == [1, 1]
    assert objects.weight is not None
    assert objects.weight.tolist() == pytest.approx([0.9, 0.75])
    # The second one's points are a wall's: its box may be right, their distance is not its.
    assert objects.depth_m[0] == 15
    assert torch.isnan(objects.depth_m[1])
    assert objects.ignored is not None
    assert objects.ignored.tolist() == [[60, 20, 120, 80]]
    elsewhere = first_sample(own_lake)
    with pytest.raises(TeacherError, match="autolabel_hand: no labels of segment elsewhere"):
        labels.objects(replace(elsewhere, key=replace(elsewhere.key, segment="elsewhere")))


def test_an_image_without_a_detection_has_no_object(own_lake: Lake) -> None:
    objects = label(own_lake, found=evidence()).objects(first_sample(own_lake))
    assert objects.boxes.shape == (0, 4)
    assert objects.ignored is not None
    assert objects.ignored.shape == (0, 4)


def test_row_groups_are_in_step_with_the_images(own_lake: Lake) -> None:
    label(own_lake)
    table = open_derived_table(own_lake, table_name("hand"), "train")
    for base in own_lake.in_split("train"):
        assert table.group_rows(base.segment) == [3 * len(chunk) for chunk in base.chunks]
    assert not any(problems for _, problems in verify(own_lake))
    files = own_lake.store.path("train/autolabel_hand/*.parquet")
    query = "select count(*), count(distinct timestamp_us), bool_or(ignored) from read_parquet($files)"
    assert duckdb.execute(query, {"files": files}).fetchall() == [(3 * 66, 33, True)]


def test_a_checksum_tells_other_labels_and_not_other_attempts(own_lake: Lake) -> None:
    one, again = label(own_lake, "one"), label(own_lake, "again")
    assert one.sha256 == again.sha256
    assert label(own_lake, "other", evidence({"mask_score": 0.95})).sha256 != one.sha256


def test_missing_labels_name_the_command(own_lake: Lake) -> None:
    with pytest.raises(LakeError, match=r"run python pipelines/autolabel.py .* --name hand --teachers NAME=FOLDER"):
        AutoLabels.open(own_lake, "train", "hand")
    with pytest.raises(LakeError, match="table 'autolabel_A/B': expected 'autolabel_' and 1 to 56 of"):
        AutoLabels.open(own_lake, "train", "A/B")


def test_show_draws_auto_labels(own_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    label(own_lake)
    drawn = []
    monkeypatch.setattr("datalake.show.draw_boxes", lambda _axes, _image, labels, title: drawn.append((labels, title)))
    segment = own_lake.commits[0].segment
    out = str(own_lake.store.root) + ".png"
    save_frame(own_lake, "train", segment, 2, "FRONT_LEFT", out, labels="autolabel_hand")
    ((labels, title),) = drawn
    assert [row["ignored"] for row in labels] == [False, True, False]
    assert {row["camera"] for row in labels} == {"FRONT_LEFT"}
    assert title.startswith("autolabel_hand: ")
    with pytest.raises(LakeError, match="--labels label: expected a table autolabel_NAME"):
        save_frame(own_lake, "train", segment, 2, "FRONT", out, labels="label")
