"""The arithmetic behind `benchmarks/scale.md`."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from benchmarks.scale import (
    Assumed,
    Estimate,
    Scale,
    build_estimate,
    chunk_readers,
    headroom,
    markdown,
    training_estimate,
    waves,
)
from benchmarks.unit_costs import UnitCosts
from datalake.order import deal, share

UNIT = UnitCosts(
    frame_bytes_in=5e6,
    frame_bytes_out=4e6,
    frame_index_s=0.002,
    frame_parse_s=0.05,
    frame_convert_s=0.01,
    frame_write_s=0.04,
    frame_build_s=0.1,
    frame_remote_build_s=0.118,
    frame_index_reads=1.0,
    frame_build_reads=1.0,
    segment_reads=4.0,
    segment_writes=20.0,
    segment_driver_s=0.005,
    segment_commit_s=0.001,
    segment_commit_bytes=2000.0,
    segment_publish_s=0.0005,
    segment_open_s=0.0001,
    build_peak_bytes=3e8,
    image_load_s=0.01,
    image_bytes=7e5,
    image_requests=0.5,
    chunk_bytes=2e7,
    image_student_s=0.2,
    image_mask_s=0.05,
    frame_lidar_s=1.0,
    student_weights=5e6,
)
ASSUMED = Assumed()


@pytest.mark.parametrize(("cores", "busiest"), [(1, 1150), (16, 72), (256, 5), (1150, 1), (5000, 1)])
def test_busiest_core_builds_whole_segments(cores: int, busiest: int) -> None:
    assert waves(1150, cores) == busiest


def test_one_core_computes_every_frame() -> None:
    limits = build_estimate(UNIT, ASSUMED, 1).limits
    assert limits["cores compute"] == pytest.approx(198_000 * 0.12)


def test_waiting_is_latency_and_the_bytes_of_one_connection() -> None:
    assumed = replace(ASSUMED, segments=1, frames=100, latency_s=0.5, stream=1e6)
    unit = replace(UNIT, segment_reads=0.0, segment_writes=0.0, frame_bytes_in=1e6, frame_bytes_out=0.0)
    # Two requests and 1 MB a frame.
    assert build_estimate(unit, assumed, 1).limits["cores wait for the store"] == pytest.approx(100 * (2 * 0.5 + 1))


def test_a_core_computes_and_waits_by_turns() -> None:
    estimate = build_estimate(UNIT, ASSUMED, 16)
    turns = estimate.limits["cores compute"] + estimate.limits["cores wait for the store"]
    assert estimate.seconds == pytest.approx(turns + estimate.tail_s)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "cores wait for the store"),
        ({"latency_s": 0.0, "stream": 1e9}, "cores compute"),
        ({"network": 1e7}, "network of the nodes"),
        ({"store": 1e7}, "the whole store"),
        ({"store_requests": 1.0}, "requests of the store"),
    ],
    ids=str,
)
def test_first_bottleneck_is_what_takes_longest(change: dict[str, float], expected: str) -> None:
    assert build_estimate(UNIT, replace(ASSUMED, **change), 256).bottleneck == expected  # type: ignore[arg-type]


def test_driver_is_in_the_way_where_its_tasks_are_slow() -> None:
    assert build_estimate(replace(UNIT, segment_driver_s=10.0), ASSUMED, 256).bottleneck == "driver"


def test_bytes_and_requests_do_not_depend_on_the_cores() -> None:
    one, many = (build_estimate(UNIT, ASSUMED, cores) for cores in (1, 256))
    assert (one.bytes_in, one.bytes_out, one.reads, one.writes) == (
        many.bytes_in,
        many.bytes_out,
        many.reads,
        many.writes,
    )
    assert one.bytes_in == 198_000 * 5e6


def test_cores_are_paid_for_as_long_as_the_build_takes() -> None:
    estimate = build_estimate(UNIT, ASSUMED, 16)
    assert estimate.dollars["cores"] == pytest.approx(16 * estimate.seconds / 3600 * ASSUMED.core_hour)


def test_twice_the_gpus_take_half_the_time_while_nothing_else_limits() -> None:
    one, two = (training_estimate(UNIT, ASSUMED, gpus, 13.3, streams=64) for gpus in (1, 2))
    assert (one.bottleneck, two.bottleneck) == ("GPUs", "GPUs")
    assert one.seconds == pytest.approx(2 * two.seconds)
    assert one.seconds == pytest.approx(12 * 990_000 / 13.3)


def test_gpus_that_are_fast_enough_wait_for_the_loaders() -> None:
    estimate = training_estimate(UNIT, replace(ASSUMED, network=1e12, store=1e12), 8, 10_000.0, streams=64)
    assert estimate.bottleneck == "cores of the loaders"


def test_headroom_is_how_much_faster_gpus_may_become() -> None:
    estimate = Estimate(
        size="", limits={"GPUs": 100.0, "network": 20.0, "store": 50.0}, in_turn=("GPUs",), tail_s=0.0,
        bytes_in=0.0, bytes_out=0.0, reads=0.0, writes=0.0, memory={}, dollars={},
    )  # fmt: skip
    assert headroom(estimate) == ("store", 2.0)


@pytest.mark.parametrize("multiple", [1, 2, 5])
def test_a_chunk_is_read_once_where_streams_are_a_multiple_of_the_batch(multiple: int) -> None:
    assert chunk_readers(multiple * 64, batch=64, processes=8, images=10) == 1


@pytest.mark.parametrize(("streams", "batch", "ranks"), [(64, 64, 8), (64, 48, 8), (16, 64, 8), (64, 512, 64)])
def test_chunk_readers_are_those_of_the_loaders_own_order(streams: int, batch: int, ranks: int) -> None:
    # As many whole streams as need not be cut: then a stream's chunks begin at multiples of ten.
    images, total = 10, streams * 960
    chunk = np.arange(total) // images
    line = deal(total, streams)
    found: dict[int, set[int]] = {}
    for rank in range(ranks):
        positions = share(0, total, batch, rank, ranks, worker=0, workers=1)
        for number in np.unique(chunk[line[positions]]):
            found.setdefault(int(number), set()).add(rank)
    average = float(np.mean([len(readers) for readers in found.values()]))
    assert chunk_readers(streams, batch, ranks, images) == pytest.approx(average, rel=0.02)


def test_page_has_every_figure_and_every_assumption() -> None:
    page = markdown(UNIT, ASSUMED, Scale(), "a machine")
    assert all(f"`{item.name}`" in page for item in fields(Assumed))
    for text in (
        "a machine",
        "not measured",
        "**measured**",
        "**assumed**",
        "first bottleneck",
        "256 cores",
        "64 GPUs",
    ):
        assert text in page


def test_measured_metrics_come_back_from_their_json() -> None:
    assert UnitCosts(**asdict(UNIT)) == UNIT
