"""From panoptic labels to a mask teacher on disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from teachers.card import TeacherCard, TeacherError, write_card, write_weights
from teachers.classes import MASK_CLASSES
from teachers.confusion import Confusion
from teachers.evaluation import compare_with_labels, mask_precision
from teachers.mask_rcnn.objective import MaskRcnnObjective, has_panoptic
from teachers.mask_rcnn.teacher import ARCHITECTURE, MaskRcnnConfig, MaskRcnnTeacher, build_network
from teachers.mask_rcnn.timm_backbone import TimmBackbone
from teachers.training import RunContext, TeacherData, train_teacher, versions
from training.loop import LoopConfig
from training.optimizer import OptimizerConfig
from training.weights_file import read_weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MaskRcnnTrainConfig:
    """How Mask R-CNN is trained, from scratch. The defaults suit simulated images of 384 x 256 and two CPU cores."""

    # The network.
    network: MaskRcnnConfig = field(default_factory=lambda: MaskRcnnConfig(variant="slim"))
    # Path or URL of the weights that a trunk of timm's starts from: a state dict of timm's or torchvision's names, as
    # safetensors or as torch.save writes it. Its batch norms stay as they are.
    trunk_weights: str | None = None
    # Instances with fewer visible pixels are background.
    min_pixels: int = 25
    # Proposals per image that the heads learn from. torchvision's 512 are made for images ten times as large.
    proposals: int = 128
    # Labelled samples per step.
    batch: int = 4
    # How fast.
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=2e-3))
    # How long, and in which number format.
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=800, warmup=0.1, checkpoint_every=50))


def train_mask_rcnn(
    config: MaskRcnnTrainConfig, data: TeacherData, context: RunContext
) -> tuple[TeacherCard, Confusion] | None:
    """Train and evaluate a Mask R-CNN; write weights and card into the context's folder and return its metrics.

    Of several workers the first alone evaluates and writes; the others return None.
    """
    torch.manual_seed(context.seed)
    config = replace(config, network=config.network.resolved())
    options = config.network.to_options()
    network = build_network(config.network)
    if config.trunk_weights is not None:
        # Of the fingerprint not their place is part, but what they are.
        config = replace(config, trunk_weights=_load_trunk(network, config.trunk_weights))
    network = network.to(context.distributed.device, memory_format=torch.channels_last)
    network.roi_heads.fg_bg_sampler = BalancedPositiveNegativeSampler(config.proposals, 0.25)
    pretrained = config.trunk_weights is not None
    objective = MaskRcnnObjective(network, options, min_pixels=config.min_pixels, pretrained=pretrained)
    trained = train_teacher(objective, config, has_panoptic, data, context)
    if not context.evaluates:
        return None
    # What is written must not depend on how the weights lay in memory.
    network = network.to(memory_format=torch.contiguous_format)
    raw = TeacherCard(
        name="mask_rcnn",
        kind="classification",
        architecture=ARCHITECTURE,
        options=options,
        channels=len(MASK_CLASSES),
        class_names=MASK_CLASSES,
        weights_sha256=write_weights(context.folder, network.state_dict()),
        data=data.data,
        versions=versions(),
    )
    teacher = MaskRcnnTeacher(raw, network)
    confusion = compare_with_labels(teacher, data.evaluation())
    precision = mask_precision(teacher, data.evaluation(), config.min_pixels)
    card = replace(raw, metrics=confusion.metrics(MASK_CLASSES) | precision | trained)
    write_card(context.folder, card)
    return card, confusion


def _load_trunk(network: MaskRCNN, url: str) -> str:
    """Give the trunk of timm's the weights in a file; return its checksum.

    Raises TeacherError where the trunk is not timm's, TimmError where they are of another model.
    """
    backbone = network.backbone
    if not isinstance(backbone, TimmBackbone):
        raise TeacherError("--mask-rcnn.trunk-weights: only for a trunk of timm's, --mask-rcnn.network.backbone timm:…")
    try:
        weights = read_weights(url)
    except FileNotFoundError as error:
        raise TeacherError(f"--mask-rcnn.trunk-weights {url}: no such file") from error
    left_out = backbone.load(weights.tensors, url)
    _log.info("trunk weights of %s, sha256 %s; no place for %s", url, weights.sha256, ", ".join(left_out) or "none")
    return weights.sha256
