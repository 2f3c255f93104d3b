"""Samples and frames by number, and what they hold beside images and 2D boxes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from datalake import ranges
from datalake.build import BuildConfig
from datalake.commit import LakeError
from datalake.lake import Lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.packed_batch import PackedBatch
from datalake.sample import FrameSample, Sample, with_sweeps
from datalake.sample_options import SampleOptions
from datalake.synthetic import DriveConfig, write_drives
from tests.drives import DRIVE_CAMERAS, DRIVE_FRAMES, DRIVE_SEGMENTS, build_drives
from tests.frames import make_frame
from tests.lakes import build_files, build_frames
from tests.support.sample_values import equal, tensors

FRAMES = DRIVE_SEGMENTS * DRIVE_FRAMES
EVERYTHING = SampleOptions(panoptic=True, boxes_3d=True, poses=True, sweeps=2)


def rows(lake: Lake, table: str, columns: Sequence[str] | None = None, **keys: Any) -> list[dict[str, Any]]:
    table_rows: list[dict[str, Any]] = lake.scan(table, columns).to_table().to_pylist()
    return [row for row in table_rows if all(row[name] == value for name, value in keys.items())]


def frame_keys(lake: Lake) -> list[tuple[str, int]]:
    return [(row["segment"], row["timestamp_us"]) for row in rows(lake, "point", ["segment", "timestamp_us"])]


def clouds(lake: Lake) -> dict[tuple[str, int], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the points [P, 3] of each frame, and its pose."""
    return {
        (row["segment"], row["timestamp_us"]): (
            np.stack([row["x_m"], row["y_m"], row["z_m"]], 1),
            np.array(row["vehicle_to_world"]).reshape(4, 4),
        )
        for row in rows(lake, "point")
    }


def test_samples_are_those_of_the_stream_in_the_order_of_the_lake(drive_lake: Lake) -> None:
    config = LoaderConfig(global_batch=3, shuffle=False, cameras=DRIVE_CAMERAS, panoptic=True)
    samples = drive_lake.dataset_of_samples("train", SampleOptions(panoptic=True), cameras=DRIVE_CAMERAS)
    assert len(samples) == 2 * FRAMES
    for found, expected in zip(samples, SampleStream(drive_lake, config), strict=True):
        assert equal(found, expected)


def test_negative_numbers_count_from_the_end_and_there_is_nothing_beyond(drive_lake: Lake) -> None:
    samples = drive_lake.dataset_of_samples("train", SampleOptions(points=False))
    assert samples[-1].key == samples[FRAMES - 1].key
    for number in (FRAMES, -FRAMES - 1):
        with pytest.raises(IndexError, match="there are 33"):
            samples[number]


def test_what_the_stream_gives_of_frames_is_what_the_data_set_gives(drive_lake: Lake) -> None:
    config = LoaderConfig(global_batch=1, shuffle=False, boxes_3d=True, poses=True, sweeps=2)
    samples = drive_lake.dataset_of_samples("train", SampleOptions(boxes_3d=True, poses=True, sweeps=2))
    stream = list(SampleStream(drive_lake, config))
    assert {len(sample.sweeps) for sample in stream} == {0, 1, 2}
    assert all(equal(samples[number], sample) for number, sample in enumerate(stream))


def test_boxes_in_space_are_the_labels_of_the_frame(drive_lake: Lake) -> None:
    samples = drive_lake.dataset_of_samples("train", SampleOptions(points=False, boxes_3d=True))
    found = 0
    for sample in (samples[number] for number in range(0, FRAMES, 5)):
        boxes = sample.boxes_3d
        labels = rows(drive_lake, "label_3d", segment=sample.key.segment, timestamp_us=sample.key.timestamp_us)
        place = ("center_x_m", "center_y_m", "center_z_m", "length_m", "width_m", "height_m", "heading_rad")
        np.testing.assert_array_equal(
            boxes.boxes.numpy(), np.array([[label[name] for name in place] for label in labels], np.float32)
        )
        assert boxes.object_ids == tuple(label["object_id"] for label in labels)
        names = (None, "VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST")
        assert [names[kind] for kind in boxes.classes.tolist()] == [label["type"] for label in labels]
        assert boxes.lidar_points.tolist() == [label["lidar_points"] for label in labels]
        assert boxes.difficulty.tolist() == [label["difficulty"] for label in labels]
        speeds = np.array([[label["speed_x_mps"], label["speed_y_mps"]] for label in labels], np.float32)
        np.testing.assert_array_equal(boxes.speed_mps.numpy(), speeds)
        found += len(labels)
    assert found > 20


def test_poses_are_those_of_the_frame_and_of_the_exposure(drive_lake: Lake) -> None:
    sample = drive_lake.dataset_of_samples("train", SampleOptions(poses=True), cameras=("FRONT_LEFT",))[7]
    key = {"segment": sample.key.segment, "timestamp_us": sample.key.timestamp_us}
    (point,), (image,) = rows(drive_lake, "point", **key), rows(drive_lake, "image", camera="FRONT_LEFT", **key)
    assert sample.vehicle_to_world.flatten().tolist() == point["vehicle_to_world"]
    assert sample.exposed_vehicle_to_world.flatten().tolist() == image["vehicle_to_world"]
    assert not torch.equal(sample.vehicle_to_world, sample.exposed_vehicle_to_world)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_sweeps_are_the_points_of_the_frames_before_where_the_world_has_them(drive_lake: Lake, count: int) -> None:
    # Chunks have four frames: sweeps come from one or two before.
    known, keys = clouds(drive_lake), frame_keys(drive_lake)
    frames = drive_lake.dataset_of_frames("train", SampleOptions(sweeps=count))
    for number in (0, 2, 4, 5, 9, 10, 11, 15):
        frame, (segment, now) = frames[number], keys[number]
        before = [key for key in keys if key[0] == segment and key[1] < now][-count:][::-1]
        assert (frame.segment, frame.timestamp_us) == (segment, now)
        assert [sweep.timestamp_us for sweep in frame.sweeps] == [time for _, time in before]
        for sweep, key in zip(frame.sweeps, before, strict=True):
            points, pose = known[key]
            in_world = points @ pose[:3, :3].T + pose[:3, 3]
            rotation, origin = known[segment, now][1][:3, :3], known[segment, now][1][:3, 3]
            expected = (in_world - origin) @ rotation  # a rotation's inverse is its transpose
            np.testing.assert_allclose(sweep.points[:3].numpy().T, expected, rtol=0, atol=5e-5)


def test_what_stands_still_lies_in_one_place_in_all_sweeps(tmp_path: Path) -> None:
    config = DriveConfig(image_width=16, image_height=16, beams=64, columns=900)
    sources = write_drives(str(tmp_path / "drive"), config, segments=1, frames=5, seed=5)
    lake = build_files(str(tmp_path / "lake"), sources, BuildConfig(points="lossless")).lake
    frame = lake.dataset_of_frames("train", SampleOptions(sweeps=4))[4]
    first = lake.dataset_of_frames("train")[0]
    assert frame.sweeps[-1].timestamp_us == first.timestamp_us
    # What rises from the ground, near enough to be hit densely.
    points = first.lidar.points
    standing = ((points[2] > 0.8) & (points[:2].norm(dim=0) < 25)).nonzero()[::20, 0]
    assert len(standing) > 500
    now = frame.lidar.points[:3].T.contiguous()

    def distance_m(points: torch.Tensor) -> float:
        # Walls along the way look the same from one frame to the next: the worst tenth says whether posts do.
        nearest = torch.cdist(points[:3, standing].T.contiguous(), now).min(1).values
        return float(nearest.quantile(0.9))

    assert distance_m(frame.sweeps[-1].points) < 0.15
    assert distance_m(points) > 0.8


def test_points_of_all_sweeps_say_how_old_they_are(drive_lake: Lake) -> None:
    frame = drive_lake.dataset_of_frames("train", SampleOptions(sweeps=2))[6]
    points = with_sweeps(frame)
    sizes = [frame.lidar.points.shape[1], *(sweep.points.shape[1] for sweep in frame.sweeps)]
    assert points.shape == (5, sum(sizes))
    ages = [part[4].unique().tolist() for part in points.split(sizes, dim=1)]
    assert [age for (age,) in ages] == pytest.approx([0.0, 0.1, 0.2], abs=0.02)
    assert torch.equal(points[:4, : sizes[0]], frame.lidar.points)


def test_sweeps_of_a_frame_without_a_pose_are_refused_in_one_line(tmp_path: Path) -> None:
    frames = [make_frame(index) for index in range(3)]
    lake = build_frames(tmp_path, frames).lake
    path = Path(lake.store.path(lake.commits[0].file_name("point")))
    older = pq.read_table(path).drop_columns(["vehicle_to_world"])
    pq.write_table(older, path, row_group_size=len(older))
    frames_of = lake.dataset_of_frames("train", SampleOptions(poses=True))
    assert frames_of[1].vehicle_to_world is None
    with pytest.raises(LakeError, match=r"the frame at \d+ has no pose, and sweeps cannot be moved") as caught:
        lake.dataset_of_frames("train", SampleOptions(sweeps=1))[1]
    assert "\n" not in str(caught.value)


def test_a_frame_has_the_samples_of_its_cameras_which_share_what_is_the_frames(drive_lake: Lake) -> None:
    frames = drive_lake.dataset_of_frames("train", EVERYTHING, cameras=DRIVE_CAMERAS)
    samples = drive_lake.dataset_of_samples("train", EVERYTHING, cameras=DRIVE_CAMERAS)
    assert len(frames) == FRAMES
    for number in (0, 3, 4, 12, FRAMES - 1):
        frame = frames[number]
        assert [sample.key.camera for sample in frame.samples] == list(DRIVE_CAMERAS)
        assert all(equal(sample, samples[2 * number + place]) for place, sample in enumerate(frame.samples))
        assert all(sample.boxes_3d is frame.boxes_3d and sample.sweeps is frame.sweeps for sample in frame.samples)
        assert {sample.lidar.points.data_ptr() for sample in frame.samples} == {frame.lidar.points.data_ptr()}


def test_frames_without_images_are_numbered_like_all_others(tmp_path: Path) -> None:
    frames = [make_frame(index) for index in range(11)]
    for index in (2, 3, 7):
        del frames[index].images[:]
    lake = build_frames(tmp_path, frames).lake
    found = list(lake.dataset_of_frames("train", cameras=("FRONT", "SIDE_LEFT")))
    assert [frame.timestamp_us for frame in found] == [frame.timestamp_micros for frame in frames]
    assert [len(frame.samples) for frame in found] == [2, 2, 0, 0, 2, 2, 2, 0, 2, 2, 2]
    samples = lake.dataset_of_samples("train")
    points = {frame.timestamp_us: frame.lidar.points for frame in found}
    assert all(torch.equal(sample.lidar.points, points[sample.key.timestamp_us]) for sample in samples)


def test_a_narrowed_lake_has_the_frames_of_the_images_that_are_left(drive_lake: Lake) -> None:
    times = sorted({row["timestamp_us"] for row in rows(drive_lake, "image", ["timestamp_us"])})
    lake = drive_lake.where(f"timestamp_us >= {times[len(times) // 2]} AND camera = 'FRONT'", "train")
    frames = lake.dataset_of_frames("train", SampleOptions(points=False), cameras=DRIVE_CAMERAS)
    left = [row["timestamp_us"] for row in lake.images(["timestamp_us"]).to_pylist()]
    assert [frame.timestamp_us for frame in frames] == left
    assert 0 < len(left) < FRAMES
    assert {sample.key.camera for frame in frames for sample in frame.samples} == {"FRONT"}


@pytest.mark.parametrize(
    ("options", "cameras", "expected"),
    [
        (SampleOptions(points=False), ("FRONT",), {"image", "label"}),
        (SampleOptions(projections=False), ("FRONT",), {"image", "label", "point"}),
        (SampleOptions(boxes_3d=True), ("FRONT",), {"image", "label", "point", "depth", "label_3d"}),
        (SampleOptions(boxes_3d=True), (), {"point", "label_3d"}),
        (SampleOptions(points=False, boxes_3d=True), (), {"label_3d"}),
    ],
)
def test_only_tables_and_columns_that_are_asked_for_are_read(
    drive_lake: Lake,
    monkeypatch: pytest.MonkeyPatch,
    options: SampleOptions,
    cameras: tuple[str, ...],
    expected: set[str],
) -> None:
    read: dict[str, set[str]] = {}
    plain = pq.ParquetFile.iter_batches, pq.ParquetFile.read_row_group

    def noted(self: pq.ParquetFile, columns: Sequence[str]) -> None:
        names = self.schema_arrow.names
        table = next(table for table in drive_lake.tables if drive_lake.dataset(table).schema.names == names)
        if list(columns) != ["timestamp_us"]:
            read.setdefault(table, set()).update(columns)

    def iter_batches(self: pq.ParquetFile, *args: Any, **kwargs: Any) -> Any:
        noted(self, kwargs["columns"])
        return plain[0](self, *args, **kwargs)

    def read_row_group(self: pq.ParquetFile, *args: Any, **kwargs: Any) -> Any:
        noted(self, kwargs["columns"])
        return plain[1](self, *args, **kwargs)

    monkeypatch.setattr(ranges.pq.ParquetFile, "iter_batches", iter_batches)
    monkeypatch.setattr(ranges.pq.ParquetFile, "read_row_group", read_row_group)
    frame = drive_lake.dataset_of_frames("train", options, cameras=cameras)[5]
    assert set(read) == expected
    assert not read.get("point", set()) & {"elongation", "u_1", "instance_id", "range_row", "vehicle_to_world"}
    assert not read.get("image", set()) & {"panoptic", "vehicle_to_world"}
    assert (frame.boxes_3d is None) == ("label_3d" not in expected)
    assert (frame.lidar is None) == ("point" not in expected)


def test_points_without_projections_are_all_the_same_points(drive_lake: Lake) -> None:
    with_them = drive_lake.dataset_of_samples("train")[3]
    without = drive_lake.dataset_of_samples("train", SampleOptions(projections=False))[3]
    assert torch.equal(with_them.lidar.points, without.lidar.points)
    assert len(with_them.lidar.pixel_point) > 0
    assert (len(without.lidar.pixel_point), without.lidar.pixel_uv.shape) == (0, (2, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sweeps": -1}, "sweeps of at least 0"),
        ({"sweeps": 2, "points": False}, "0 without points, got: 2"),
        ({"lasers": ("ROOF",)}, "unknown lasers: ROOF; there are TOP"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LakeError, match=message):
        SampleOptions(**options)


def test_splits_and_cameras_that_are_not_there_are_refused_before_anything_is_read(drive_lake: Lake) -> None:
    for dataset in (drive_lake.dataset_of_samples, drive_lake.dataset_of_frames):
        with pytest.raises(LakeError, match="no split 'test'"):
            dataset("test")
        with pytest.raises(LakeError, match="unknown cameras: ROOF"):
            dataset("train", cameras=("ROOF",))


def mean_of_image(sample: Sample) -> tuple[str, float]:
    return str(sample.key), float(sample.image.float().mean())


@pytest.mark.integration
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_processes_give_the_same_whatever_their_start(drive_lake: Lake, start: str) -> None:
    samples = drive_lake.dataset_of_samples("train", SampleOptions(sweeps=1), transform=mean_of_image)
    # Files that are open here must not be used there.
    expected = [samples[number] for number in range(len(samples))]
    loader = DataLoader(samples, batch_size=4, num_workers=2, collate_fn=list, multiprocessing_context=start)
    assert [each for batch in loader for each in batch] == expected


@pytest.mark.integration
def test_forked_worker_processes_read_a_remote_lake(drive_sources: list[str], s3_lake: str) -> None:
    lake = build_drives(drive_sources[:1], s3_lake)
    frames = lake.dataset_of_frames("train", EVERYTHING, cameras=DRIVE_CAMERAS)
    expected = [frames[number] for number in range(len(frames))]
    loader = DataLoader(frames, 3, num_workers=2, collate_fn=PackedBatch, multiprocessing_context="fork")
    found = [frame for batch in loader for frame in batch]
    assert all(equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_batch_of_frames_travels_as_one_piece_of_memory(drive_lake: Lake) -> None:
    frames = drive_lake.dataset_of_frames("train", EVERYTHING, cameras=DRIVE_CAMERAS)
    batch = [frames[4], frames[5]]
    made: list[FrameSample] = _through_pickle(PackedBatch(batch))
    assert all(equal(*pair) for pair in zip(made, batch, strict=True))
    assert len({each.untyped_storage().data_ptr() for frame in made for each in tensors(frame)}) == 1


def _through_pickle(batch: PackedBatch) -> Any:
    make, arguments = batch.__reduce__()
    return make(*arguments)


def test_threads_may_share_a_data_set(drive_lake: Lake) -> None:
    samples = drive_lake.dataset_of_samples("train", EVERYTHING)
    expected = [samples[number] for number in range(FRAMES)]
    fresh = pickle.loads(pickle.dumps(samples))
    with ThreadPoolExecutor(4) as pool:
        assert all(equal(*pair) for pair in zip(pool.map(fresh.__getitem__, range(FRAMES)), expected, strict=True))


def test_a_remote_stream_fetches_what_its_sweeps_need(drive_sources: list[str], s3_lake: str) -> None:
    lake = build_drives(drive_sources[:1], s3_lake)
    here = {sample.key: sample for sample in SampleStream(lake, LoaderConfig(global_batch=1, sweeps=5))}
    for number in (0, 3, 9):
        sample = lake.dataset_of_samples("train", SampleOptions(sweeps=5))[number]
        assert len(sample.sweeps) == min(number, 5)
        assert equal(here[sample.key], sample)


def test_rows_that_are_not_wanted_are_not_decoded_behind_the_wanted_one(drive_lake: Lake) -> None:
    (path,) = [drive_lake.store.path(drive_lake.commits[0].file_name("point"))]
    with pq.ParquetFile(path) as parquet:
        whole = parquet.read_row_group(0, columns=["timestamp_us", "x_m"])
        for rows_wanted in (slice(0, 1), slice(1, 3), slice(3, 4)):
            part = ranges.read_rows(parquet, 0, ["timestamp_us", "x_m"], rows_wanted)
            assert part.equals(whole.slice(rows_wanted.start, rows_wanted.stop - rows_wanted.start))
