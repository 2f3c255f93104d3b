"""The stream of samples: what is in them, and that the order survives ranks, workers and interruptions."""

from __future__ import annotations

import io
import itertools
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from datalake.chunk import Chunk
from datalake.commit import LakeError
from datalake.lake import Lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.sample import Sample
from tests.drives import DRIVE_FRAMES, DRIVE_SEGMENTS, build_drives
from tests.frames import SEGMENT, START_US, make_frame, panoptic_png
from tests.lakes import build_frames
from tests.support.sample_values import equal, tensors

IMAGES = DRIVE_SEGMENTS * DRIVE_FRAMES
CONFIG = LoaderConfig(global_batch=4, streams=8)


def keys(stream: SampleStream, workers: int = 0) -> list[list[Any]]:
    return [[sample.key for sample in batch] for batch in stream.loader(workers)]


def row(lake: Lake, table: str, sample: Sample, *, camera: bool = True) -> list[dict[str, Any]]:
    where = (ds.field("segment") == sample.key.segment) & (ds.field("timestamp_us") == sample.key.timestamp_us)
    if camera:
        where &= ds.field("camera") == sample.key.camera
    rows: list[dict[str, Any]] = lake.scan(table, filter=where).to_table().to_pylist()
    return rows


def first(lake: Lake, config: LoaderConfig = CONFIG) -> Sample:
    return next(iter(SampleStream(lake, config)))


def test_an_epoch_has_each_image_of_its_camera_at_most_once(drive_lake: Lake) -> None:
    seen = [key for batch in keys(SampleStream(drive_lake, CONFIG)) for key in batch]
    assert len(seen) == len(set(seen)) == IMAGES // 4 * 4
    assert {key.camera for key in seen} == {"FRONT"}


def test_without_shuffling_each_image_comes_once_in_the_order_of_the_lake(drive_lake: Lake) -> None:
    config = LoaderConfig(global_batch=4, shuffle=False, cameras=("FRONT", "FRONT_LEFT"))
    seen = [key for batch in keys(SampleStream(drive_lake, config)) for key in batch]
    table = drive_lake.scan("image", ["segment", "timestamp_us", "camera"]).to_table().to_pylist()
    assert [(key.segment, key.timestamp_us, key.camera) for key in seen] == [tuple(line.values()) for line in table]


def test_a_lake_of_few_chunks_is_mixed_as_well(drive_lake: Lake) -> None:
    stream = SampleStream(drive_lake, LoaderConfig(global_batch=3, streams=64, points=False))
    segments = {commit.segment: number for number, commit in enumerate(drive_lake.in_split("train"))}
    assert len(segments) == 3
    seen = [[segments[key.segment] for key in batch] for batch in keys(stream)]
    mixed = sum(len(set(batch)) > 1 for batch in seen)
    assert mixed >= 0.9 * len(seen)


@pytest.mark.integration
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_change_the_batches(drive_lake: Lake, workers: int) -> None:
    config = LoaderConfig(global_batch=4, streams=8, points=False)
    assert keys(SampleStream(drive_lake, config, epochs=2), workers) == keys(SampleStream(drive_lake, config, epochs=2))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_have_the_batches_of_one(drive_lake: Lake, world_size: int) -> None:
    ranks = [keys(SampleStream(drive_lake, CONFIG, rank=rank, world_size=world_size)) for rank in range(world_size)]
    together = [[key for part in parts for key in part] for parts in zip(*ranks, strict=True)]
    assert together == keys(SampleStream(drive_lake, CONFIG))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.integration)])
def test_resuming_gives_exactly_the_samples_that_were_left(drive_lake: Lake, workers: int) -> None:
    whole = keys(SampleStream(drive_lake, CONFIG, epochs=2))
    for step in (1, 5, 8, 11):
        resumed = SampleStream(drive_lake, CONFIG, epochs=2, start=4 * step)
        assert keys(resumed, workers) == whole[step:]


@pytest.mark.integration
def test_resumed_samples_are_equal_to_the_last_bit(drive_lake: Lake) -> None:
    config = LoaderConfig(global_batch=4, streams=8, image_size=(48, 32), panoptic=True)
    whole = [sample for batch in SampleStream(drive_lake, config).loader() for sample in batch]
    resumed = [sample for batch in SampleStream(drive_lake, config, start=8).loader(2) for sample in batch]
    assert len(resumed) == len(whole) - 8
    assert all(equal(left, right) for left, right in zip(resumed, whole[8:], strict=True))


@pytest.fixture(scope="module")
def lasers_lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake of one frame with points of all lasers."""
    return build_frames(tmp_path_factory.mktemp("lasers"), [make_frame(3)]).lake


def test_points_of_some_lasers_are_those_of_all_without_the_others(lasers_lake: Lake) -> None:
    config = LoaderConfig(global_batch=1)
    every, top = (first(lasers_lake, replace(config, lasers=lasers)).lidar for lasers in ((), ("TOP",)))
    assert every is not None
    assert top is not None
    assert set(every.laser.tolist()) > {1} == set(top.laser.tolist())
    assert torch.equal(top.points, every.points[:, every.laser == 1])
    seen = every.laser[every.pixel_point.long()] == 1
    assert torch.equal(top.points[:, top.pixel_point.long()], every.points[:, every.pixel_point[seen].long()])
    assert torch.equal(top.pixel_uv, every.pixel_uv[:, seen])
    assert torch.equal(top.pixel_depth_m, every.pixel_depth_m[seen])
    assert equal(top, every.of_laser(1))
    assert top.of_laser(1) is top


def test_shared_memory_that_is_too_small_for_reader_processes_is_told_before_they_start(
    drive_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker_s = shutil.disk_usage("/")._replace(free=64 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: docker_s)
    stream = SampleStream(drive_lake, replace(CONFIG, global_batch=8, image_size=None))
    with pytest.raises(LakeError, match=r"64 MiB free, the images that 2 reader processes hold .* 225: .*--shm-size"):
        stream.loader(workers=2)
    SampleStream(drive_lake, replace(CONFIG, image_size=(96, 64))).loader(workers=2)
    stream.loader(workers=0)


def test_an_unknown_laser_is_refused(drive_lake: Lake) -> None:
    with pytest.raises(LakeError, match="unknown lasers: ROOF; there are TOP, FRONT"):
        SampleStream(drive_lake, replace(CONFIG, lasers=("ROOF",)))


def test_the_number_of_threads_does_not_change_the_samples(drive_lake: Lake) -> None:
    one, many = (list(SampleStream(drive_lake, replace(CONFIG, threads=threads))) for threads in (1, 7))
    assert all(equal(left, right) for left, right in zip(one, many, strict=True))


def test_a_whole_batch_is_decoded_ahead(drive_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = threading.Semaphore(0)
    decode = Chunk.sample

    def counted(self: Chunk, row: int) -> Sample:
        decoded.release()
        return decode(self, row)

    monkeypatch.setattr(Chunk, "sample", counted)
    samples = iter(SampleStream(drive_lake, replace(CONFIG, global_batch=8, points=False)))
    next(samples)
    assert all(decoded.acquire(timeout=20) for _ in range(9))


@pytest.mark.integration
def test_a_batch_of_another_process_is_one_piece_of_memory(drive_lake: Lake) -> None:
    config = replace(CONFIG, image_size=(48, 32), panoptic=True, cameras=("FRONT", "FRONT_LEFT"), shuffle=False)
    here, there = (next(iter(SampleStream(drive_lake, config).loader(workers))) for workers in (0, 1))
    assert type(there) is list
    assert all(equal(left, right) for left, right in zip(there, here, strict=True))
    assert len({tensor.untyped_storage().data_ptr() for sample in there for tensor in tensors(sample)}) == 1
    first_lidar, second_lidar = there[0].lidar, there[1].lidar
    assert there[0].key.timestamp_us == there[1].key.timestamp_us
    assert first_lidar is not None
    assert second_lidar is not None
    assert first_lidar.points is second_lidar.points


@pytest.mark.integration
def test_after_cuda_has_begun_workers_are_not_forked(drive_lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SampleStream(drive_lake, CONFIG)
    assert stream.loader(2).multiprocessing_context is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    context = stream.loader(1).multiprocessing_context
    assert context.get_start_method() == "forkserver"
    assert [sample.key for sample in next(iter(stream.loader(1)))] == keys(stream)[0]


def test_the_image_is_the_decoded_jpeg(drive_lake: Lake) -> None:
    sample = first(drive_lake)
    (line,) = row(drive_lake, "image", sample)
    expected = np.asarray(Image.open(io.BytesIO(line["jpeg"])).convert("RGB")).transpose(2, 0, 1)
    # Two builds of libjpeg may round the inverse transform apart by one.
    assert np.abs(sample.image.numpy().astype(int) - expected).max() <= 2


def test_objects_are_the_labels_of_the_image(drive_lake: Lake) -> None:
    for sample in SampleStream(drive_lake, CONFIG):
        lines = row(drive_lake, "label", sample)
        assert sample.objects.boxes.tolist() == [[line["x0"], line["y0"], line["x1"], line["y1"]] for line in lines]
        names = {"VEHICLE": 1, "PEDESTRIAN": 2, "SIGN": 3, "CYCLIST": 4}
        assert sample.objects.classes.tolist() == [names[line["type"]] for line in lines]
        depths = [np.nan if line["depth_m"] is None else line["depth_m"] for line in lines]
        np.testing.assert_array_equal(sample.objects.depth_m.numpy(), np.array(depths, np.float32))
        assert sample.objects.difficulty is not None
        assert sample.objects.difficulty.tolist() == [line["difficulty"] for line in lines]


def test_boxes_of_old_lakes_end_at_the_image_and_those_beyond_it_are_dropped(own_lake: Lake) -> None:
    path = Path(own_lake.store.path(own_lake.commits[0].file_name("label")))
    with pq.ParquetFile(path) as parquet:
        groups = [parquet.read_row_group(group) for group in range(parquet.num_row_groups)]
    with pq.ParquetWriter(path, groups[0].schema) as writer:
        for group in groups:
            edges = {"x0": 96.0, "x1": 99.0} if group is groups[0] else {"x0": -9.0, "x1": 99.0}
            for name, value in edges.items():
                column = group.schema.get_field_index(name)
                filled = pa.array([value] * len(group), pa.float32())
                group = group.set_column(column, group.schema.field(name), filled)
            writer.write_table(group, row_group_size=max(1, len(group)))
    stream = SampleStream(own_lake, replace(CONFIG, image_size=(48, 32), shuffle=False, points=False))
    in_chunk = len(own_lake.commits[0].chunks[0].replace("2", ""))
    samples = list(itertools.islice(stream, 2 * in_chunk))
    assert [len(sample.objects.boxes) + len(sample.objects.classes) for sample in samples[:in_chunk]] == [0] * in_chunk
    wide = torch.cat([sample.objects.boxes for sample in samples[in_chunk:]])
    assert len(wide) > 0
    assert wide[:, [0, 2]].unique(dim=0).tolist() == [[0.0, 48.0]]


def test_points_are_those_of_the_frame(drive_lake: Lake) -> None:
    sample = first(drive_lake)
    (line,) = row(drive_lake, "point", sample, camera=False)
    assert sample.lidar is not None
    assert sample.lidar.points.tolist() == [line[name] for name in ("x_m", "y_m", "z_m", "intensity")]
    assert sample.lidar.laser.tolist() == line["laser"]
    assert sample.lidar.semantic_class is not None
    assert sample.lidar.semantic_class.tolist() == line["semantic_class"]


def test_projected_points_lie_at_their_depth_from_the_camera(drive_lake: Lake) -> None:
    sample = first(drive_lake)
    assert sample.lidar is not None
    assert sample.camera_to_vehicle is not None
    seen = sample.lidar.points[:3, sample.lidar.pixel_point.long()].double()
    away = (seen - sample.camera_to_vehicle[:3, 3:]).norm(dim=0)
    assert len(away) > 20
    # Positions are rounded to 1/256 m, depths are not.
    assert (away - sample.lidar.pixel_depth_m).abs().max() < 0.004


def test_everything_is_resized_together(drive_lake: Lake) -> None:
    native = first(drive_lake, LoaderConfig(global_batch=4, streams=8, panoptic=True))
    half = first(drive_lake, LoaderConfig(global_batch=4, streams=8, panoptic=True, image_size=(48, 16)))
    assert native.key == half.key
    assert half.image.shape == (3, 16, 48)
    scale = torch.tensor([0.5, 0.25])
    torch.testing.assert_close(half.objects.boxes, native.objects.boxes * scale.repeat(2))
    assert native.lidar is not None
    assert half.lidar is not None
    torch.testing.assert_close(half.lidar.pixel_uv, native.lidar.pixel_uv * scale[:, None])
    assert native.intrinsic is not None
    assert half.intrinsic is not None
    torch.testing.assert_close(half.intrinsic[:4], native.intrinsic[:4] * scale.double().repeat(2))
    assert half.panoptic is not None
    assert half.panoptic.semantic_class.shape == (16, 48)


def test_a_point_is_seen_in_the_middle_of_its_pixel(drive_lake: Lake) -> None:
    sample = first(drive_lake)
    (seen,) = row(drive_lake, "depth", sample)
    assert sample.lidar is not None
    pixels = torch.tensor([seen["u"], seen["v"]])
    assert torch.equal(sample.lidar.pixel_uv, pixels + 0.5)


@pytest.mark.parametrize("size", [(192, 128), (96, 64), (384, 256)])
def test_what_a_image_shows_moves_with_its_boxes(tmp_path: Path, size: tuple[int, int]) -> None:
    # Waymo's side cameras: neither side is a multiple of what the decoder halves by. The panoptic labels as well.
    width, height, edges = 1920, 886, np.array([400, 200, 1600, 800])
    shown = np.zeros((height, width), np.uint8)
    shown[edges[1] : edges[3], edges[0] : edges[2]] = 255
    frame = make_frame()
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.stack([shown] * 3, 2)).save(jpeg, "JPEG", quality=95)
    Image.fromarray((shown > 0).astype(np.uint16) * 2000).save(png, "PNG")
    frame.images[0].image = jpeg.getvalue()
    frame.images[0].camera_segmentation_label.panoptic_label = png.getvalue()
    frame.images[0].camera_segmentation_label.panoptic_label_divisor = 1000
    frame.context.camera_calibrations[0].width = width
    frame.context.camera_calibrations[0].height = height
    lake = build_frames(tmp_path, [frame]).lake
    config = LoaderConfig(global_batch=1, image_size=size, shuffle=False, panoptic=True)
    sample = first(lake, config)
    assert sample.panoptic is not None
    scaled = edges * np.tile(np.divide(size, (width, height)), 2)
    for image, within in ((sample.image[0].double() / 255, 0.1), (sample.panoptic.semantic_class == 2, 1.0)):
        across, down = image.double().sum(1).max(), image.double().sum(0).max()
        middle = image.double()[size[1] // 2], image.double()[:, size[0] // 2]
        starts = [float((1 - line[: len(line) // 2]).sum()) for line in middle]
        assert [float(across), float(down)] == pytest.approx((scaled[2:] - scaled[:2]).tolist(), abs=within)
        assert starts == pytest.approx(scaled[:2].tolist(), abs=within)


def test_panoptic_classes_agree_with_the_boxes(drive_lake: Lake) -> None:
    config = LoaderConfig(global_batch=4, streams=8, panoptic=True, points=False)
    found = 0
    for sample in SampleStream(drive_lake, config):
        assert sample.panoptic is not None
        for box, kind in zip(sample.objects.boxes, sample.objects.classes, strict=True):
            x0, y0, x1, y1 = box.round().int().tolist()
            classes = set(sample.panoptic.semantic_class[y0:y1, x0:x1].unique().tolist())
            # Official camera classes: 2 car, 3 truck, 4 bus, 5 other large vehicle, 9 pedestrian.
            if kind == 1:
                found += 1
                assert classes & {2, 3, 4, 5}
    assert found > 10


def test_points_that_are_not_asked_for_are_not_read(drive_lake: Lake) -> None:
    assert first(drive_lake, LoaderConfig(global_batch=4, points=False)).lidar is None


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (LoaderConfig(split="test"), {}, "no split 'test', there are: train"),
        (LoaderConfig(cameras=("ROOF",)), {}, "unknown cameras: ROOF"),
        (LoaderConfig(cameras=("SIDE_LEFT",)), {}, "0 images of SIDE_LEFT"),
        (LoaderConfig(global_batch=64), {}, "33 images of FRONT, fewer than one batch of 64"),
        (LoaderConfig(global_batch=4, reads=0), {}, "Expected at least 1 read at once, got: 0"),
        (LoaderConfig(global_batch=4), {"world_size": 3}, "4 cannot be cut among 3 ranks"),
        (LoaderConfig(global_batch=4), {"start": 6}, "not a multiple of the batch 4"),
        (LoaderConfig(shuffle=False), {"epochs": 2}, "there is one epoch"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(
    drive_lake: Lake, config: LoaderConfig, options: dict[str, int], message: str
) -> None:
    with pytest.raises(LakeError, match=message) as caught:
        SampleStream(drive_lake, config, **options)
    assert "\n" not in str(caught.value)


def test_a_panoptic_label_of_an_unknown_class_is_named(tmp_path: Path) -> None:
    frame = make_frame()
    label = frame.images[0].camera_segmentation_label
    label.panoptic_label, label.panoptic_label_divisor = panoptic_png(np.full((16, 16), 40_000, np.uint16)), 1000
    lake = build_frames(tmp_path, [frame]).lake
    with pytest.raises(LakeError, match=f"{SEGMENT}.*the panoptic label of FRONT at {START_US} .*: it names class 40"):
        first(lake, LoaderConfig(global_batch=1, panoptic=True))


def test_whatever_a_sample_raises_names_segment_time_and_camera(
    drive_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise IndexError("out of bounds")

    monkeypatch.setattr(Chunk, "_objects", broken)
    with pytest.raises(IndexError) as caught:
        first(drive_lake, replace(CONFIG, shuffle=False))
    (image, *_) = drive_lake.scan("image", columns=["segment", "timestamp_us"]).to_table().to_pylist()
    assert caught.value.__notes__ == [f"about {image['segment']} {image['timestamp_us']} FRONT"]


def test_a_jpeg_that_does_not_decode_is_named(own_lake: Lake) -> None:
    commit = own_lake.commits[0]
    path = own_lake.store.path(commit.file_name("image"))
    with open(path, "r+b") as stream:  # noqa: PTH123
        data = stream.read()
        for start in (at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"):
            stream.seek(start)
            stream.write(b"\0\0\0")
    config = LoaderConfig(global_batch=1, shuffle=False, points=False)
    with pytest.raises(LakeError, match=rf"{commit.segment}.*the JPEG of FRONT at \d+ does not decode"):
        first(own_lake, config)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.integration)])
def test_a_stream_reads_from_an_object_store(drive_sources: list[str], s3_lake: str, workers: int) -> None:
    lake = build_drives(drive_sources[:1], s3_lake)
    config = LoaderConfig(global_batch=2, streams=2)
    assert len(keys(SampleStream(lake, config), workers)) == DRIVE_FRAMES // 2
