"""Pairs of images: of one drive, in an order that can be continued anywhere."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import pytest

from datalake import loader
from datalake.chunk import Chunk
from datalake.commit import LakeError
from datalake.lake import Lake
from datalake.loader import LoaderConfig
from datalake.sample import Sample, SampleKey
from datalake.sample_options import SampleOptions
from datalake.segment_files import SegmentFiles
from student.pretraining.clips import ClipStream, Pairs

CAMERAS = ("FRONT", "FRONT_LEFT")
CONFIG = LoaderConfig(cameras=CAMERAS, image_size=(24, 16), points=False, global_batch=4, streams=4, seed=1)


def deal(
    lake: Lake, pairs: Pairs, batches: int, *, start: int = 0, rank: int = 0, ranks: int = 1, workers: int = 0
) -> list[tuple[list[SampleKey], list[SampleKey]]]:
    """Return the keys of so many batches as first and second ones."""
    stream = ClipStream(lake, CONFIG, pairs, start=start, rank=rank, world_size=ranks)
    part = CONFIG.global_batch // ranks
    found: list[tuple[list[SampleKey], list[SampleKey]]] = []
    for batch in itertools.islice(stream.loader(workers), batches):
        keys = [sample.key for sample in batch]
        found.append((keys[:part], keys[part:]))
    return found


def times(lake: Lake) -> dict[tuple[str, str], list[int]]:
    """Return each camera's timestamps of each segment, ascending, from the table of images."""
    rows = lake.scan("image", ["segment", "camera", "timestamp_us"]).to_table().to_pylist()
    found = defaultdict(list)
    for row in rows:
        found[row["segment"], row["camera"]].append(row["timestamp_us"])
    return {name: sorted(each) for name, each in found.items()}


def test_next_pairs_are_of_one_camera_and_one_frame_apart_and_an_epoch_has_each_once(drive_lake: Lake) -> None:
    known = times(drive_lake)
    # 3 segments of 11 frames and 2 cameras have 60 pairs.
    dealt = deal(drive_lake, "next", 15)
    pairs = [pair for first, second in dealt for pair in zip(first, second, strict=True)]
    for first, second in pairs:
        assert (first.segment, first.camera) == (second.segment, second.camera)
        of_camera = known[first.segment, first.camera]
        assert of_camera.index(second.timestamp_us) == of_camera.index(first.timestamp_us) + 1
    assert len(set(pairs)) == len(pairs) == 60


def test_same_pairs_have_no_second_images(drive_lake: Lake) -> None:
    dealt = deal(drive_lake, "same", 16)
    assert all(not second for _, second in dealt)
    assert len({key for first, _ in dealt for key in first}) == 64


def test_shuffled_pairs_are_of_different_segments(drive_lake: Lake) -> None:
    pairs = [pair for first, second in deal(drive_lake, "shuffled", 16) for pair in zip(first, second, strict=True)]
    assert all(first.segment != second.segment for first, second in pairs)
    assert max(Counter(second for _, second in pairs).values()) < 10


def test_shuffled_pairs_of_one_segment_are_refused(own_lake: Lake) -> None:
    segment = own_lake.commits[0].segment
    alone = own_lake.where(f"segment = '{segment}'", "train")
    with pytest.raises(LakeError, match="has one segment, and pairs of different ones are asked for"):
        ClipStream(alone, CONFIG, "shuffled")


def test_too_few_pairs_are_refused(drive_lake: Lake) -> None:
    config = LoaderConfig(cameras=CAMERAS, points=False, global_batch=61)
    ClipStream(drive_lake, config, "same")
    with pytest.raises(LakeError, match=r"has 60 pairs \(next\) of FRONT, FRONT_LEFT, fewer than"):
        ClipStream(drive_lake, config, "next")


@pytest.mark.parametrize("pairs", ["same", "next", "shuffled"])
def test_the_order_is_the_same_again_and_from_anywhere(drive_lake: Lake, pairs: Pairs) -> None:
    whole = deal(drive_lake, pairs, 20)
    assert whole == deal(drive_lake, pairs, 20)
    # In the second epoch too.
    for batches in (1, 7, 17):
        assert deal(drive_lake, pairs, 20 - batches, start=batches * CONFIG.global_batch) == whole[batches:]


def test_epochs_have_orders_of_their_own(drive_lake: Lake) -> None:
    dealt = deal(drive_lake, "next", 30)
    assert dealt[:15] != dealt[15:]
    first, second = (Counter(key for keys, _ in some for key in keys) for some in (dealt[:15], dealt[15:]))
    assert first == second


@pytest.mark.parametrize("pairs", ["next", "shuffled"])
def test_two_ranks_share_the_pairs_of_one(drive_lake: Lake, pairs: Pairs) -> None:
    whole = deal(drive_lake, pairs, 6)
    parts = [deal(drive_lake, pairs, 6, rank=rank, ranks=2) for rank in (0, 1)]
    for one, (first, second) in enumerate(whole):
        assert parts[0][one][0] + parts[1][one][0] == first
        assert parts[0][one][1] + parts[1][one][1] == second


def test_a_chunk_is_read_for_its_own_pairs_and_for_those_that_reach_into_it(
    drive_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []

    class Counted(Chunk):
        def __init__(self, files: SegmentFiles, group: int, options: SampleOptions) -> None:
            super().__init__(files, group, options)
            reads.append(group)

    monkeypatch.setattr(loader, "Chunk", Counted)
    assert len(list(ClipStream(drive_lake, CONFIG, "next", epochs=1))) == 120
    # 3 chunks of 4, 4 and 3 frames: the second and the third of each segment have a chunk before them.
    assert Counter(reads) == {0: 3, 1: 6, 2: 6}


@pytest.mark.integration
def test_reader_processes_deal_the_same(drive_lake: Lake) -> None:
    assert deal(drive_lake, "next", 17, workers=2) == deal(drive_lake, "next", 17)


def test_images_are_those_of_the_keys(drive_lake: Lake) -> None:
    plain = ClipStream(drive_lake, CONFIG, "same", epochs=1)
    images = {sample.key: sample.image for sample in plain}
    pairs: list[Sample] = list(itertools.islice(ClipStream(drive_lake, CONFIG, "next"), 64))
    compared = [bool((sample.image == images[sample.key]).all()) for sample in pairs if sample.key in images]
    assert compared
    assert all(compared)
