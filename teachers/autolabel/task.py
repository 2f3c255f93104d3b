"""What a task does with one segment, in this process, in another, or on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from datalake.commit import Commit
from datalake.derived_table import Origin
from datalake.lake import Lake, open_lake
from datalake.sample import Sample
from datalake.sources.frame import OBJECT_TYPES
from teachers.autolabel.calibration import Calibration
from teachers.autolabel.evidence import Evidence
from teachers.autolabel.lidar_objects import LidarObjects
from teachers.autolabel.proposer import LabelTeachers, Proposer
from teachers.autolabel.table import Labelled, chunks_of, label_segment
from teachers.classes import MASK_CLASSES

# The type of masks of each type of objects; 0 for one that no mask teacher knows.
_TYPE_OF_OBJECT = np.array([MASK_CLASSES.index(name) if name in MASK_CLASSES else 0 for name in OBJECT_TYPES])


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTask:
    """A segment of a lake, and whom to ask about it.

    image_size: width and height in pixels of the images that the teachers see
    threads: of the process that runs the task; None: as it has
    """

    lake: str
    snapshot: int
    base: Commit
    teachers: LabelTeachers
    image_size: tuple[int, int]
    device: str
    threads: int | None


@dataclass(frozen=True, slots=True, eq=False)
class ProposedImage:
    """What the teachers say of one image, beside its human labels of the types that the mask teacher knows.

    evidence: of the mask teacher's detections; objects: what the lidar teacher finds alone
    boxes: float32 [M, 4], in the same pixels; types: int64 [M], index into `MASK_CLASSES`
    depth_m: float32 [M], NaN where it is not known
    """

    evidence: Evidence
    objects: LidarObjects
    boxes: NDArray[np.float32]
    types: NDArray[np.int64]
    depth_m: NDArray[np.float32]


def propose_segment(task: SegmentTask) -> list[ProposedImage]:
    """Return what the teachers say of each image of a segment; raises LakeError or TeacherError where one fails."""
    lake, proposer = _prepared(task)
    proposed = []
    for samples in chunks_of(lake, task.base, task.image_size):
        for sample, (evidence, objects) in zip(samples, proposer.propose(samples), strict=True):
            proposed.append(ProposedImage(evidence, objects, *_truth(sample)))
    return proposed


def label_task(task: SegmentTask, origin: Origin, calibration: Calibration) -> Labelled:
    """Label a segment, see `label_segment`."""
    lake, proposer = _prepared(task)
    return label_segment(lake, task.base, proposer, origin, calibration)


def _prepared(task: SegmentTask) -> tuple[Lake, Proposer]:
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    return _opened(task.lake, task.snapshot), _loaded(task.teachers, task.device)


@lru_cache(maxsize=1)
def _opened(url: str, snapshot: int) -> Lake:
    return open_lake(url, snapshot)


# A process does many segments: the teachers are loaded once.
@lru_cache(maxsize=1)
def _loaded(teachers: LabelTeachers, device: str) -> Proposer:
    return Proposer.load(teachers, torch.device(device))


def _truth(sample: Sample) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    objects = sample.objects
    types = _TYPE_OF_OBJECT[objects.classes.numpy()]
    known = types > 0
    return objects.boxes.numpy()[known], types[known], objects.depth_m.numpy()[known]
