"""What one of each costs: a full-size frame, a segment, an image, a step; measured on one thread in a minute.

Seconds are CPU seconds of this process in all of its threads, so that a busy machine counts little. What goes to a
store goes over HTTP to another process (`benchmarks.object_store`), which counts the requests; TLS is not in it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.build_speed import build, plan_of
from benchmarks.faulty_store import Faults, Request
from benchmarks.fullsize import write_fullsize_segment
from benchmarks.linear import drive, snapshot
from benchmarks.object_store import RemoteStore, remote_store
from benchmarks.step_time import labelled_images
from datalake.attempt import begin_attempt
from datalake.build import BuildConfig, build_segment
from datalake.convert import frame_rows
from datalake.lake import Lake, open_lake, prepare_lake, publish_snapshot
from datalake.loader import LoaderConfig, SampleStream
from datalake.plan import plan_segments
from datalake.sample_options import SampleOptions
from datalake.schema import TABLES
from datalake.sources.formats import index_source
from datalake.sources.frame import ALL_CAMERAS, Frame
from datalake.sources.waymo_v1.parse import parse_frame
from datalake.sources.waymo_v1.source import slot_of
from datalake.sources.waymo_v1.tfrecord import RecordFile
from datalake.store import Store
from datalake.writer import SegmentWriter
from pipelines.cluster import cluster
from student.config import BranchSpec, StudentConfig
from student.detector import Student
from student.distillation.batch import DetectionBatch
from student.distillation.objective import DetectionObjective, LossWeights
from teachers.mask_rcnn.teacher import build_network
from teachers.mask_rcnn.train import MaskRcnnTrainConfig
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.point_teacher import LidarTeacher
from teachers.spvnas.scan import Scan
from teachers.spvnas.train import SpvcnnTrainConfig
from training.generators import Chance

_LAKE, _SOURCE = "s3://lakes/lake", "s3://lakes/source.tfrecord"
# What a student sees (width, height), as in the paper.
IMAGE_SIZE = (384, 256)
# Of the snapshot and the driver: enough that what does not depend on their number is a small part.
_COMMITS, _TINY_SEGMENTS, _SEGMENT_FRAMES = 1000, 150, 172
_BRANCHES = (
    BranchSpec(name="spvcnn", kind="regression", channels=24),
    BranchSpec(name="mask_rcnn", kind="classification", channels=4),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCosts:
    """Measured. `_s` are CPU seconds; per frame, per segment, or per image, as the name says.

    frame_reads: requests that read a frame from a remote source: `index` for the plan, `build` for the segment
    segment_reads, segment_writes: all other requests of one segment's index and build; not the parts of uploads
    build_peak_bytes: resident memory of a process that builds a segment, with the imports that this needs
    chunk_bytes: of the tables of one chunk, as the loader has it in memory
    """

    frame_bytes_in: float
    frame_bytes_out: float
    frame_index_s: float
    frame_parse_s: float
    frame_convert_s: float
    frame_write_s: float
    frame_build_s: float
    frame_remote_build_s: float
    frame_index_reads: float
    frame_build_reads: float
    segment_reads: float
    segment_writes: float
    segment_driver_s: float
    segment_commit_s: float
    segment_commit_bytes: float
    segment_publish_s: float
    segment_open_s: float
    build_peak_bytes: float
    image_load_s: float
    image_bytes: float
    image_requests: float
    chunk_bytes: float
    image_student_s: float
    image_mask_s: float
    frame_lidar_s: float
    student_weights: float


def cpu_s(work: Callable[[], object], rounds: int = 1) -> float:
    """Return the least CPU seconds that a call took, in all threads of this process."""
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


def measure(frames: int) -> UnitCosts:
    """Measure everything, with one segment of `frames` full-size frames."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source.tfrecord"
        write_fullsize_segment(str(source), frames)
        plan = plan_of(source)
        with RecordFile(str(source)) as file:
            payloads = [file.read(slot_of(ref)) for ref in plan.records]
        parsed = [parse_frame(payload, frozenset(ALL_CAMERAS)) for payload in payloads]
        report = build(plan, folder / "lake")
        stages = _stages(payloads, parsed, folder)
        local_s = cpu_s(lambda: build(plan, folder / "lake"), rounds=2)
        index_s = cpu_s(lambda: index_source(str(source)), rounds=2)
        peak = _peak_bytes(source, folder / "lake")
        with remote_store() as store:
            remote = _remote(source, frames, store)
        with cluster():
            drive(folder / "warm-up", 20, _SEGMENT_FRAMES)
            driver = drive(folder / "driver", _TINY_SEGMENTS, _SEGMENT_FRAMES)
        # Of two rounds the shorter times count.
        rounds = [snapshot(folder / f"snapshot-{number}", _COMMITS, 16, _SEGMENT_FRAMES) for number in range(2)]
        frozen = {figure: min(one[figure] for one in rounds) for figure in rounds[0]}
    student_s, weights = _student()
    return UnitCosts(
        frame_bytes_in=report.bytes_in / frames,
        frame_bytes_out=report.bytes_out / frames,
        frame_index_s=index_s / frames,
        frame_parse_s=stages["parse"] / frames,
        frame_convert_s=stages["convert"] / frames,
        frame_write_s=stages["write"] / frames,
        frame_build_s=local_s / frames,
        **remote,
        segment_driver_s=driver["build CPU s"] / _TINY_SEGMENTS,
        segment_commit_s=frozen["commit CPU s"] / _COMMITS,
        segment_commit_bytes=frozen["snapshot bytes"] / _COMMITS,
        segment_publish_s=frozen["publish CPU s"] / _COMMITS,
        segment_open_s=frozen["open CPU s"] / _COMMITS,
        build_peak_bytes=peak,
        image_student_s=student_s,
        image_mask_s=_mask(),
        frame_lidar_s=_lidar(parsed[0]),
        student_weights=weights,
    )


def _peak_bytes(source: Path, lake: Path) -> float:
    """Return what `benchmarks.build_speed` says of a build's memory, without the imports of this process."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.build_speed import peak_memory;"
        "print(peak_memory(*map(Path, sys.argv[1:])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(lake)], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def _stages(payloads: list[bytes], parsed: list[Frame], folder: Path) -> dict[str, float]:
    """Return the CPU seconds of each stage over all frames."""
    rows = [frame_rows(frame, "quantised") for frame in parsed]

    def write() -> None:
        store = Store(str(folder / "stages"))
        with SegmentWriter(store, begin_attempt(store, "train", "segment", tuple(TABLES), "")) as writer:
            for frame in rows:
                writer.append(frame)
            writer.finish({})

    return {
        "parse": cpu_s(lambda: [parse_frame(payload, frozenset(ALL_CAMERAS)) for payload in payloads], rounds=2),
        "convert": cpu_s(lambda: [frame_rows(frame, "quantised") for frame in parsed], rounds=2),
        "write": cpu_s(write, rounds=2),
    }


def _remote(source: Path, frames: int, remote: RemoteStore) -> dict[str, float]:
    """Return what a build and an epoch cost whose source and lake are behind a store."""
    store = Store(_LAKE)
    Store(_LAKE.rsplit("/", 1)[0]).write(_SOURCE.rsplit("/", 1)[1], source.read_bytes())
    prepare_lake(store, "quantised")
    remote.behave(Faults())
    (plan,) = plan_segments([index_source(_SOURCE)])
    index_log = remote.log()
    remote.behave(Faults())
    build_s = cpu_s(lambda: build_segment(plan, _LAKE, BuildConfig()))
    build_log = remote.log()
    publish_snapshot(store)
    lake = open_lake(_LAKE)
    config = LoaderConfig(cameras=ALL_CAMERAS, image_size=IMAGE_SIZE, global_batch=5, streams=4)
    epoch_s = []
    for _ in range(2):
        remote.behave(Faults())
        epoch_s.append(cpu_s(lambda: list(SampleStream(lake, config))))
    epoch_log = remote.log()
    images = frames * len(ALL_CAMERAS)
    of_frames = [_payload_reads(log) for log in (index_log, build_log)]
    others = [request for request in index_log + build_log if request.method in ("GET", "HEAD")]
    return {
        "frame_remote_build_s": build_s / frames,
        "frame_index_reads": of_frames[0] / frames,
        "frame_build_reads": of_frames[1] / frames,
        "segment_reads": float(len(others) - sum(of_frames)),
        "segment_writes": float(len(index_log) + len(build_log) - len(others)),
        "image_load_s": min(epoch_s) / images,
        "image_bytes": sum(request.bytes for request in epoch_log) / images,
        "image_requests": len(epoch_log) / images,
        "chunk_bytes": _chunk_bytes(lake),
    }


def _payload_reads(log: list[Request]) -> int:
    """Return how many requests read a range of the source."""
    return sum(1 for request in log if request.method == "GET" and request.range and "source.tfrecord" in request.path)


def _chunk_bytes(lake: Lake) -> float:
    columns = SampleOptions(image_size=IMAGE_SIZE).columns
    (commit,) = lake.commits
    return sum(lake.scan(table, names).to_table().nbytes for table, names in columns.items()) / len(commit.chunks)


def _student(batch: int = 6, steps: int = 5) -> tuple[float, float]:
    """Return the CPU seconds of a training step per image, without teachers, and the number of weights."""
    torch.manual_seed(0)
    images, objects = labelled_images(batch)
    objective = DetectionObjective(Student(StudentConfig(branches=_BRANCHES)), LossWeights(), {}).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4)

    def step(number: int) -> None:
        chance = Chance(0, number, tuple(range(batch)))
        optimizer.zero_grad(set_to_none=True)
        losses = objective(DetectionBatch(images, objects, {}, chance.generators(), chance), 0.0)
        torch.stack([loss.weight * loss.value for loss in losses.values()]).sum().backward()
        optimizer.step()

    step(0)
    seconds = [cpu_s(lambda number=number: step(number)) for number in range(1, steps)]  # type: ignore[misc]
    return statistics.median(seconds) / batch, float(sum(weight.numel() for weight in objective.parameters()))


@torch.no_grad()
def _mask() -> float:
    """Return the CPU seconds of the default mask teacher's network for one image."""
    torch.manual_seed(0)
    network = build_network(MaskRcnnTrainConfig().network).eval()
    images, _ = labelled_images(1)
    network([images[0].float() / 255])
    return cpu_s(lambda: network([images[0].float() / 255]), rounds=3)


def _lidar(frame: Frame) -> float:
    """Return the CPU seconds of the default lidar teacher's network for one full-size frame."""
    torch.manual_seed(0)
    teacher = LidarTeacher(SPVCNN(SpvcnnTrainConfig().network(), "plain"))
    scan = Scan.from_waymo(frame.points)
    return cpu_s(lambda: teacher.predict([scan]))
