"""From lessons to a mask teacher on disk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from teachers.card import TeacherCard, write_card, write_weights
from teachers.classes import MASK_CLASSES
from teachers.confusion import Confusion
from teachers.mask_rcnn import ARCHITECTURE, MaskRcnnConfig, MaskRcnnTeacher, build_network
from teachers.training.evaluation import compare_with_labels, mask_precision
from teachers.training.lessons import Lessons, Room, versions
from training.loop import LoopConfig, train
from teachers.training.masks import MaskTask


@dataclass(frozen=True, kw_only=True)
class MaskCourse:
    """How Mask R-CNN is trained, from scratch. The defaults suit simulated pictures of 384 x 256 and two CPU cores."""

    # The network.
    network: MaskRcnnConfig = field(default_factory=lambda: MaskRcnnConfig(variant="slim"))
    # Instances with fewer visible pixels are background.
    min_pixels: int = 25
    # Proposals per picture that the heads learn from. torchvision's 512 are made for pictures ten times as large.
    proposals: int = 128
    # How long and how fast.
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=800, batch=4, learning_rate=2e-3))


def hold_mask_course(course: MaskCourse, lessons: Lessons, room: Room) -> tuple[TeacherCard, Confusion]:
    """Train and examine a Mask R-CNN; write weights and card into the room's folder and return its figures."""
    torch.manual_seed(room.seed)
    network = build_network(course.network).to(room.device, memory_format=torch.channels_last)
    network.roi_heads.fg_bg_sampler = BalancedPositiveNegativeSampler(course.proposals, 0.25)
    trained = train(
        MaskTask(network, min_pixels=course.min_pixels),
        course.loop,
        lessons.endless,
        room.folder,
        device=room.device,
        identity=flatten(course) | room.identity,
        epoch_samples=lessons.epoch_samples,
        seed=room.seed,
        progress=lambda done, total: room.progress("train", done, total, "steps"),
    )
    # What is written must not depend on how the weights lay in memory.
    network = network.to(memory_format=torch.contiguous_format)
    raw = TeacherCard(
        name="mask_rcnn",
        kind="classes",
        architecture=ARCHITECTURE,
        options=course.network.to_options(),
        channels=len(MASK_CLASSES),
        class_names=MASK_CLASSES,
        weights_sha256=write_weights(str(room.folder), network.state_dict()),
        data=lessons.data,
        versions=versions(),
    )
    teacher = MaskRcnnTeacher(raw, network)
    confusion = compare_with_labels(teacher, lessons.examination())
    precision = mask_precision(teacher, lessons.examination(), course.min_pixels)
    card = replace(raw, figures=confusion.figures(MASK_CLASSES) | precision | trained.figures())
    write_card(str(room.folder), card)
    return card, confusion
