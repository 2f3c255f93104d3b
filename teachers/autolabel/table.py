"""Auto-labels in a lake: the table `autolabel_<name>`, as it is written and as a training reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from datalake.chunk import Chunk
from datalake.commit import Commit
from datalake.derived_table import AUTOLABEL, DerivedTable, Origin, open_derived_table, write_derived_segment
from datalake.lake import Lake
from datalake.sample import Objects, Sample
from datalake.sample_options import SampleOptions
from datalake.schema import LABEL
from datalake.segment_files import SegmentFiles
from datalake.sources.frame import OBJECT_TYPES
from teachers.autolabel.calibration import Calibration
from teachers.autolabel.evidence import Evidence
from teachers.autolabel.lidar_objects import LidarObjects
from teachers.autolabel.proposer import Proposer
from teachers.card import TeacherCard, TeacherError
from teachers.classes import MASK_CLASSES
from training.boxes import pairwise_iou, shared_areas

# Rows as in `label`, and what the teachers say. The name of the table says that no human did.
SCHEMA = pa.schema(
    [
        *LABEL,
        pa.field("depth_nearest_m", pa.float32()),  # median of the nearest cluster of the points
        pa.field("mask_score", pa.float32()),  # what the mask teacher says, not calibrated; null: it found nothing here
        # How likely the label is right; null where that is not calibrated.
        pa.field("score", pa.float32()),
        # How likely the nearest cluster's points are of the type, by the lidar teacher; null where it says nothing.
        pa.field("agreement", pa.float32()),
        pa.field("ignored", pa.bool_(), nullable=False),  # neither a label nor background
    ]
)
# What the lidar teacher alone is so sure of is ignored: it is no label, and not taken for background either. On 200
# simulated frames a fifth of the pedestrians who were background before were such.
_LIDAR_ALONE = 0.3
# Where it overlaps a box of the mask teacher so much, or lies in it by half, that box says what to do.
_SAME_IOU, _SAME_SHARE = 0.3, 0.5
# The lidar teacher confirms a label, and its points tell its distance, where they are more likely of its type than not.
CONFIRMED = 0.5
# A shuffled epoch visits some 64 segments by turns; a segment of 198 frames has some thousands of rows.
_KEPT_SEGMENTS = 128
_READ = ("timestamp_us", "camera", "type", "x0", "y0", "x1", "y1", "depth_m", "score", "agreement", "ignored")


def table_name(name: str) -> str:
    """Return the table that auto-labels called `name` have in a lake."""
    return f"{AUTOLABEL}{name}"


def origin_of(
    name: str, cards: Mapping[str, TeacherCard], image_size: tuple[int, int], settings: Mapping[str, Any]
) -> Origin:
    """Return all that the labels depend on, as the lake stores it: the teachers, and the settings.

    cards: by architecture
    image_size: width and height in pixels of the images that the teachers see

    Raises LakeError for an impossible name.
    """
    checksums = {kind: card.weights_sha256 for kind, card in sorted(cards.items())}
    version = hashlib.sha256(json.dumps(checksums).encode()).hexdigest()
    # As it will be read back: a tuple becomes a list.
    plain = json.loads(json.dumps({"teachers": checksums, "image_size": image_size, **settings}))
    return Origin(table_name(name), version, plain)


@dataclass(frozen=True, slots=True)
class Labelled:
    """What became of a segment.

    committed: whether this attempt wrote its part of the table; another may have been faster
    """

    images: int
    labels: int
    ignored: int
    committed: bool


def label_segment(
    lake: Lake,
    base: Commit,
    proposer: Proposer,
    origin: Origin,
    calibration: Calibration,
    notify: Callable[[int], None] = lambda _: None,
) -> Labelled:
    """Label every image of a segment and commit the labels.

    origin: of these teachers and this calibration, from `origin_of`
    notify: called with the number of images of each chunk that is done

    Raises LakeError or TeacherError where an image or a teacher fails, or the segment has labels of another origin.
    """
    images = labels = ignored = 0
    image_width, image_height = origin.settings["image_size"]

    def groups() -> Iterator[pa.RecordBatch]:
        nonlocal images, labels, ignored
        for samples in chunks_of(lake, base, (image_width, image_height)):
            rows = []
            for sample, (evidence, objects) in zip(samples, proposer.propose(samples), strict=True):
                rows += rows_of(sample, evidence, objects, calibration)
            images, ignored = images + len(samples), ignored + sum(row["ignored"] for row in rows)
            labels += sum(not row["ignored"] for row in rows)
            yield pa.RecordBatch.from_pylist(rows, SCHEMA)
            notify(len(samples))

    part = write_derived_segment(lake.store, base, origin, SCHEMA, groups())
    return Labelled(images, labels, ignored, part is not None)


def chunks_of(lake: Lake, base: Commit, image_size: tuple[int, int]) -> Iterator[list[Sample]]:
    """Yield the samples of each chunk of a segment, with the points of all lasers."""
    files = SegmentFiles(lake, base)
    options = SampleOptions(image_size=image_size)
    try:
        for group, cameras in enumerate(base.chunks):
            if not cameras:
                yield []
                continue
            chunk = Chunk(files, group, options)
            yield [chunk.sample(row) for row in range(len(cameras))]
    finally:
        files.close()


def rows_of(
    sample: Sample, evidence: Evidence, objects: LidarObjects, calibration: Calibration
) -> list[dict[str, Any]]:
    """Return the rows of one image: its labels and what is ignored; of what is taken for background there is none.

    objects: what the lidar teacher finds alone
    """
    assert sample.record_size is not None, "samples of a lake say how large the record's image is"
    scores, thresholds = calibration.score(evidence), calibration.threshold(evidence)
    height, width = sample.image.shape[1:]
    scale = np.tile(np.array(sample.record_size, np.float32) / np.array([width, height], np.float32), 2)
    key = {"segment": sample.key.segment, "timestamp_us": sample.key.timestamp_us, "camera": sample.key.camera}
    rows = []
    # Of what is not calibrated nobody knows that it is background.
    kept = ~(scores < calibration.background)
    for number in np.flatnonzero(kept).tolist():
        rows.append(
            {
                **key,
                "object_id": f"{sample.key.camera}-{number}",
                "type": MASK_CLASSES[evidence.types[number]],
                **_edges(evidence.boxes[number] * scale),
                "difficulty": 0,
                "depth_m": _or_null(evidence.depth_m[number]),
                "depth_median_m": _or_null(evidence.depth_median_m[number]),
                "depth_points": int(evidence.points[number]),
                "depth_nearest_m": _or_null(evidence.depth_nearest_m[number]),
                "mask_score": float(evidence.mask_score[number]),
                "score": _or_null(scores[number]),
                "agreement": _or_null(evidence.agreement[number]),
                "ignored": not scores[number] >= thresholds[number],
            }
        )
    for number in _of_lidar_alone(objects, evidence.boxes[kept]):
        rows.append(
            {
                **key,
                "object_id": f"{sample.key.camera}-lidar-{number}",
                "type": MASK_CLASSES[objects.types[number]],
                **_edges(objects.boxes[number] * scale),
                "difficulty": 0,
                "depth_m": float(objects.depth_m[number]),
                "depth_points": int(objects.points[number]),
                "ignored": True,
            }
        )
    return rows


def _of_lidar_alone(objects: LidarObjects, boxes: NDArray[np.float32]) -> list[int]:
    """Return the numbers of the objects that the lidar teacher is sure of and none of the boxes [N, 4] shows."""
    sure = objects.score >= _LIDAR_ALONE
    if len(boxes) and sure.any():
        found, others = torch.from_numpy(objects.boxes), torch.from_numpy(boxes)
        area = (found[:, 2:] - found[:, :2]).prod(1, keepdim=True)
        same = (pairwise_iou(found, others) >= _SAME_IOU) | (shared_areas(found, others) > _SAME_SHARE * area)
        sure &= ~same.any(1).numpy()
    numbers: list[int] = np.flatnonzero(sure).tolist()
    return numbers


def _edges(box: NDArray[np.float32]) -> dict[str, float]:
    return dict(zip(("x0", "y0", "x1", "y1"), box.tolist(), strict=True))


class AutoLabels:
    """The auto-labels of a lake's images, as a training reads them."""

    def __init__(self, table: DerivedTable) -> None:
        self._table = table
        self._segments: dict[str, dict[tuple[int, str], list[dict[str, Any]]]] = {}

    @staticmethod
    def open(lake: Lake, split: str, name: str) -> AutoLabels:
        """Return the labels called `name` of a split; raises LakeError where a segment has none."""
        return AutoLabels(open_derived_table(lake, table_name(name), split))

    @property
    def teachers(self) -> dict[str, str]:
        """Architecture -> SHA-256 of the weights of the teachers who made them."""
        return dict(self._table.origin.settings["teachers"])

    @property
    def sha256(self) -> str:
        """A checksum of all of the labels."""
        return self._table.sha256

    def labelled(self, sample: Sample) -> Sample:
        """Return a sample with its auto-labels in the place of the labels that it has; see `objects`."""
        return replace(sample, objects=self.objects(sample))

    def objects(self, sample: Sample) -> Objects:
        """Return the auto-labels of a sample in its pixels.

        They are weighted by their score. Their distance is known where the lidar teacher confirms them.
        Raises TeacherError for a sample of another segment.
        """
        height, width = sample.image.shape[1:]
        assert sample.record_size is not None, "samples of a lake say how large the record's image is"
        scale = torch.tensor([width / sample.record_size[0], height / sample.record_size[1]] * 2)
        rows = self._of_segment(sample.key.segment).get((sample.key.timestamp_us, sample.key.camera), [])
        labels = [row for row in rows if not row["ignored"]]

        def boxes(some: Sequence[Mapping[str, Any]]) -> torch.Tensor:
            corners = [[row[edge] for edge in ("x0", "y0", "x1", "y1")] for row in some]
            return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4) * scale

        return Objects(
            boxes=boxes(labels),
            classes=torch.tensor([OBJECT_TYPES.index(row["type"]) for row in labels], dtype=torch.int64),
            depth_m=torch.tensor([_confirmed_depth_m(row) for row in labels], dtype=torch.float32),
            weight=torch.tensor([row["score"] for row in labels], dtype=torch.float32),
            ignored=boxes([row for row in rows if row["ignored"]]),
        )

    def _of_segment(self, segment: str) -> dict[tuple[int, str], list[dict[str, Any]]]:
        if segment not in self._segments:
            if segment not in self._table.segments:
                raise TeacherError(f"{self._table.origin.table}: no labels of segment {segment}; label its split first")
            by_image: dict[tuple[int, str], list[dict[str, Any]]] = {}
            for row in self._table.read(segment, columns=_READ).to_pylist():
                by_image.setdefault((row["timestamp_us"], row["camera"]), []).append(row)
            self._segments[segment] = by_image
            if len(self._segments) > _KEPT_SEGMENTS:
                del self._segments[next(iter(self._segments))]
        return self._segments[segment]


def _confirmed_depth_m(row: Mapping[str, Any]) -> float:
    confirmed = row["agreement"] is not None and row["agreement"] >= CONFIRMED
    return float(row["depth_m"]) if confirmed and row["depth_m"] is not None else float("nan")


def _or_null(value: np.floating[Any]) -> float | None:
    return None if np.isnan(value) else float(value)
