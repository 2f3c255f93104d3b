"""The range of every numeric option of the pipelines, checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from datalake.limits import check_range


class Range(NamedTuple):
    """From `least` to `most`; exclusive: but not `least` itself."""

    least: float
    most: float = math.inf
    exclusive: bool = False


_COUNT, _COUNT_OR_NONE, _SHARE = Range(1), Range(0), Range(0, 1)
_POSITIVE, _NOT_NEGATIVE = Range(0, exclusive=True), Range(0)
_SEED = Range(0, 2**63 - 1)
# Pixels, or cells; a JPEG has no longer side.
_SIDE = Range(1, 65_535)

# By the class and the name of the option. For a tuple it is that of each value; None for an option is none.
RANGES: dict[str, dict[str, Range]] = {
    "DemoConfig": dict.fromkeys(
        (
            *("teach_segments", "train_segments", "val_segments", "frames"),
            *("lidar_steps", "mask_steps", "student_steps"),
        ),
        _COUNT,
    ),
    "TrainConfig": {
        "min_anchor_recall": _SHARE,
        "seed": _SEED,
        "snapshot": _COUNT_OR_NONE,
        "image_size": _SIDE,
        "labelled_fraction": Range(0, 1, exclusive=True),
        "batch": _COUNT,
        "unlabelled": _COUNT_OR_NONE,
        "teacher_gpus": _NOT_NEGATIVE,
        "cache_bytes": _NOT_NEGATIVE,
        "data_workers": _COUNT_OR_NONE,
        "workers": _COUNT_OR_NONE,
        "max_failures": _COUNT_OR_NONE,
    },
    "LossWeights": dict.fromkeys(("objectness", "rpn_box", "classification", "box", "depth"), _NOT_NEGATIVE),
    "StudentConfig": {
        "freeze_stages": Range(0, 4),
        "image_mean": _SHARE,
        "image_std": _POSITIVE,
        "stages": _COUNT,
        "blocks": _COUNT,
        "width": _COUNT,
        "branch_width": _COUNT,
        "branch_kernel": _COUNT,
        "head_width": Range(2),
        "rpn_positive_iou": Range(0, 1, exclusive=True),
        "depth_beta": _NOT_NEGATIVE,
        "max_depth_m": _POSITIVE,
        "rpn_batch": _COUNT,
        "roi_batch": _COUNT,
        "proposals": _COUNT,
        "min_score": _SHARE,
        "detections": _COUNT,
    },
    "FGFIConfig": {"weight": _NOT_NEGATIVE, "psi": _SHARE, "min_score": _SHARE},
    "FitNetConfig": {"weight": _NOT_NEGATIVE},
    "LGDConfig": {"weight": _NOT_NEGATIVE, "detection_weight": _NOT_NEGATIVE, "start": _SHARE},
    "ImitationConfig": {
        "regression": _NOT_NEGATIVE,
        "classification": _NOT_NEGATIVE,
        "foreground_factor": _NOT_NEGATIVE,
        "final_factor": _SHARE,
    },
    "KDConfig": {"weight": _NOT_NEGATIVE, "temperature": _POSITIVE, "depth": _NOT_NEGATIVE},
    "PKDConfig": {"weight": _NOT_NEGATIVE},
    "CrossKDConfig": {"classification": _NOT_NEGATIVE, "box": _NOT_NEGATIVE, "temperature": _POSITIVE},
    "ReviewKDConfig": {"weight": _NOT_NEGATIVE},
    # Of images, and of scans.
    "Augmentation": {"mirror": _SHARE, "light": _SHARE, "turn_rad": Range(0, math.pi), "scale": Range(0, 0.9)},
    "OptimizerConfig": {
        "learning_rate": _POSITIVE,
        "muon_lr_factor": _NOT_NEGATIVE,
        "pretrained_lr_factor": _NOT_NEGATIVE,
        "weight_decay": _NOT_NEGATIVE,
        "max_gradient_norm": _POSITIVE,
    },
    # A rate that rises until the end would never be reached.
    "LoopConfig": {
        "steps": _COUNT,
        "warmup": Range(0, 0.9),
        "accumulate": _COUNT,
        "checkpoint_every": _COUNT,
        "keep": _COUNT_OR_NONE,
        "diagnose_every": _COUNT_OR_NONE,
    },
    "TrainTeachersConfig": {
        "snapshot": _COUNT_OR_NONE,
        "image_size": _SIDE,
        "eval_samples": _COUNT,
        "seed": _SEED,
        "data_workers": _COUNT_OR_NONE,
        "workers": _COUNT_OR_NONE,
        "max_failures": _COUNT_OR_NONE,
    },
    "PretrainConfig": {
        "seed": _SEED,
        "snapshot": _COUNT_OR_NONE,
        "image_size": _SIDE,
        "batch": _COUNT,
        "data_workers": _COUNT_OR_NONE,
    },
    "ViewConfig": {
        "size": _SIDE,
        "area": Range(0, 1, exclusive=True),
        "aspect": _POSITIVE,
        # Half a turn reaches every hue.
        "hue": Range(0, 0.5),
        **dict.fromkeys(("overlap", "mirror", "jitter", "brightness", "contrast", "saturation"), _SHARE),
        **dict.fromkeys(("gray", "blur", "solarize"), _SHARE),
    },
    # One vector alone has no rank.
    "ByolConfig": {"hidden": _COUNT, "dimensions": Range(2), "momentum": _SHARE, "recent": Range(2)},
    "SegmentConfig": {
        "images": _COUNT,
        "fit_images": _COUNT,
        "snapshot": _COUNT_OR_NONE,
        "image_size": _SIDE,
        "truth_size": _SIDE,
        "least_pixels": _COUNT,
        "components": _COUNT,
        "draws": _COUNT,
        "seed": _SEED,
    },
    "AttentionConfig": {
        **dict.fromkeys(("images", "fit_images", "least_pixels", "draws"), _COUNT),
        "snapshot": _COUNT_OR_NONE,
        "image_size": _SIDE,
        "truth_size": _SIDE,
        "seed": _SEED,
    },
    # Labels are kept in a byte, and a curve of two points has no knee.
    "ClusterConfig": {
        "clusters": Range(2, 255),
        "most": Range(3, 255),
        "class_clusters": Range(2, 4096),
        "class_cells": _COUNT,
        "least_cells": _COUNT,
        "restarts": _COUNT,
    },
    "ByolDenseConfig": {
        "hidden": _COUNT,
        "dimensions": Range(2),
        "momentum": _SHARE,
        "recent": Range(2),
        "cell": _COUNT,
        "dense": _NOT_NEGATIVE,
        "pooled": _NOT_NEGATIVE,
    },
    "ByolLidarConfig": {
        "hidden": _COUNT,
        "dimensions": Range(2),
        "momentum": _SHARE,
        "recent": Range(2),
        "places": _COUNT,
        "crop": _SIDE,
        "dense": _NOT_NEGATIVE,
        "pooled": _NOT_NEGATIVE,
    },
    "DinoConfig": {
        "prototypes": Range(2),
        "hidden": _COUNT,
        "bottleneck": Range(2),
        "recent": Range(2),
        "student_temperature": _POSITIVE,
        "teacher_temperatures": _POSITIVE,
        **dict.fromkeys(("warmup", "frozen", "center_momentum", "momentum"), _SHARE),
        "crops": _COUNT_OR_NONE,
        "crop_size": _SIDE,
        "crop_area": Range(0, 1, exclusive=True),
    },
    "OdinConfig": {
        "hidden": _COUNT,
        "dimensions": Range(2),
        "recent": Range(2),
        "temperature": _POSITIVE,
        **dict.fromkeys(("regions", "rest", "cell"), _COUNT),
        **dict.fromkeys(("start", "momentum", "discovery_momentum"), _SHARE),
    },
    "VitConfig": {**dict.fromkeys(("dimensions", "blocks", "heads", "patch"), _COUNT), "size": _SIDE},
    "DetectorTrainConfig": {
        "labelled_fraction": Range(0, 1, exclusive=True),
        "batch": _COUNT,
        "min_anchor_recall": _SHARE,
    },
    "SpvcnnTrainConfig": {
        # Of one channel in the narrowest layer.
        "width": Range(1 / 32, 16),
        "voxel_m": Range(0.001, 100),
        "dropout": Range(0, 0.99),
        "measured_samples": _COUNT,
        "batch": _COUNT,
    },
    "MaskRcnnTrainConfig": {"min_pixels": _COUNT_OR_NONE, "proposals": _COUNT, "batch": _COUNT},
    "MaskRcnnConfig": {
        "min_size": _SIDE,
        "max_size": _SIDE,
        "anchor_sizes": _SIDE,
        "score": _SHARE,
        "detections": _COUNT,
        "image_mean": _SHARE,
        "image_std": _POSITIVE,
    },
    "EvaluateConfig": {"batch": _COUNT, "image_size": _SIDE, "samples": _COUNT},
    "AttackConfig": {
        "images": _COUNT,
        "batch": _COUNT,
        "epsilon": Range(0, 255, exclusive=True),
        "epsilons": Range(0, 255, exclusive=True),
        "steps": _COUNT,
        "fewer_steps": _COUNT,
        "seed": _SEED,
    },
    "CorruptionsConfig": {"images": _COUNT, "batch": _COUNT, "seed": _SEED},
    "InterpretConfig": {"images": Range(2), "batch": _COUNT},
    "ProbeConfig": {
        "images": _COUNT,
        "batch": _COUNT,
        "frames": _COUNT,
        "shares": Range(0, 1, exclusive=True),
        "seed": _SEED,
    },
    "AblateConfig": {
        "seeds": _SEED,
        "labelled_fractions": Range(0, 1, exclusive=True),
        "steps": _COUNT,
        "parallel": _COUNT,
    },
    "AutolabelConfig": {
        "calibration_images": _COUNT,
        "precision": Range(0, 1, exclusive=True),
        "background": _SHARE,
        "image_size": _SIDE,
    },
    "CacheTargetsConfig": {"grid": _SIDE, "image_size": _SIDE},
    "Spvnas": {"samples": _COUNT, "image_size": _SIDE},
}


def check_options(config: Any, prefix: str = "--") -> None:
    """Raise LakeError, naming the option as it is given, where a number in `config` or its parts is out of its range.

    config: a dataclass that an option of the command line stands for
    """
    ranges = RANGES.get(type(config).__name__, {})
    for field in fields(config):
        option, value = f"{prefix}{field.name.replace('_', '-')}", getattr(config, field.name)
        if is_dataclass(value):
            check_options(value, f"{option}.")
        elif field.name in ranges:
            for each in value if isinstance(value, tuple) else (value,):
                # A word, such as `auto`, is one of those that the option takes.
                if each is not None and not isinstance(each, str):
                    check_range(option, each, *ranges[field.name][:2], exclusive=ranges[field.name].exclusive)
