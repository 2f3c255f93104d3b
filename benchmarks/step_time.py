"""A training step of the student beside torchvision's Faster R-CNN with a trunk of the same cost.

    python -m benchmarks.step_time

Both get the same images, the same number of anchors, proposals and neurons, the same optimizer and precision, and
take turns step by step, so that a noisy machine is noisy for both. The images are a simulated drive's. Then the
student's step as it is trained, taken apart, with torch's own Muon beside its optimizer. Ends with 1 where the
student's median step takes more than 1.3 times the peer's, or its optimizer more than half of forward and backward.
"""

from __future__ import annotations

import io
import itertools
import json
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.transforms.functional import pil_to_tensor

from datalake.sample import Objects
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.synthetic import DriveConfig, simulate_segment
from student.config import BranchSpec, StudentConfig
from student.detector import Student
from student.distillation.batch import DetectionBatch
from student.distillation.objective import DetectionObjective, LossWeights
from student.layers import memory_format
from student.rpn import anchor_generator
from student.trunk import ClassroomTrunk
from training.generators import Chance
from training.objective import Loss
from training.optimizer import OptimizerConfig, build_optimizer
from training.precision import uses_bfloat16

_LIMIT = 1.3
# Where a CPU emulates bfloat16, torch's Muon takes many times as long as forward and backward together.
_OPTIMIZER_LIMIT = 0.5
_BRANCHES = (
    BranchSpec(name="spvcnn", kind="regression", channels=24),
    BranchSpec(name="mask_rcnn", kind="classification", channels=4),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    # Steps of each, of which the first two do not count.
    steps: int = 12
    batch: int = 6
    threads: int = torch.get_num_threads()
    # Where the metrics go, as JSON.
    output: Path = Path("out/bench/step_time.json")


class PeerBackbone(nn.Module):
    """The student's trunk with a convolution on each of its maps, as a feature pyramid has."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.trunk, self._norm = ClassroomTrunk(config), config.norm
        self.smooth = nn.ModuleList(nn.Conv2d(config.width, config.width, 3, padding=1) for _ in range(config.levels))
        self.out_channels = config.width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the maps by level."""
        view = self.trunk(images.contiguous(memory_format=memory_format(self._norm, images.device)))
        maps = zip(self.smooth, (view.fine, *view.coarse), strict=True)
        # torchvision computes boxes in whatever it finds features in.
        return OrderedDict((str(level), smooth(one).float()) for level, (smooth, one) in enumerate(maps))


def build_peer(config: StudentConfig, image_size: tuple[int, int]) -> FasterRCNN:
    """Return torchvision's Faster R-CNN with the student's trunk, anchors and sizes."""
    anchors = anchor_generator(config)
    return FasterRCNN(
        PeerBackbone(config),
        min_size=min(image_size),
        max_size=max(image_size),
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(config.width, len(anchors.cell_anchors[0])),
        rpn_pre_nms_top_n_train=2 * config.proposals,
        rpn_post_nms_top_n_train=config.proposals,
        rpn_batch_size_per_image=config.rpn_batch,
        box_roi_pool=MultiScaleRoIAlign([str(n) for n in range(config.levels)], 7, 2),
        box_head=TwoMLPHead(config.width * 49, config.head_width),
        box_predictor=FastRCNNPredictor(config.head_width, config.classes),
        box_batch_size_per_image=config.roi_batch,
    )


def labelled_images(count: int) -> tuple[Tensor, list[Objects]]:
    """Return images uint8 [B, 3, 256, 384] of a simulated drive and their objects."""
    images, objects = [], []
    types = {1: 1, 2: 2, 4: 4}
    for record in simulate_segment(DriveConfig(), seed=5, index=0, frames=count):
        frame = dataset_pb2.Frame.FromString(record)
        (image,), (labels,) = frame.images, frame.camera_labels
        images.append(pil_to_tensor(Image.open(io.BytesIO(image.image)).convert("RGB")))
        boxes = [
            (b.center_x - b.length / 2, b.center_y - b.width / 2, b.center_x + b.length / 2, b.center_y + b.width / 2)
            for b in (label.box for label in labels.labels)
        ]
        classes = torch.tensor([types[label.type] for label in labels.labels], dtype=torch.int64)
        depths = torch.full((len(boxes),), 30.0)
        objects.append(Objects(torch.tensor(boxes).reshape(-1, 4), classes, depths))
    return torch.stack(images), objects


def step_of(parameters: list[nn.Parameter], losses: Callable[[int], Tensor]) -> Callable[[int], float]:
    """Return a function that takes a training step and returns the seconds it took."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step(number: int) -> float:
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        losses(number).backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def run(options: Options, console: Console) -> int:
    """Measure, print the table, and return the exit status."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images, objects = labelled_images(options.batch)
    config = StudentConfig(branches=_BRANCHES)
    bfloat16 = uses_bfloat16("auto", torch.device("cpu"))
    objective = DetectionObjective(Student(config), LossWeights(), {})
    objective.train()
    peer = build_peer(config, (images.shape[2], images.shape[3])).train()
    as_floats = [image.float() / 255 for image in images]
    targets = [{"boxes": one.boxes, "labels": one.classes} for one in objects]

    def ours(number: int) -> Tensor:
        chance = Chance(0, number, tuple(range(len(images))))
        batch = DetectionBatch(images, objects, {}, chance.generators(), chance)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            losses: dict[str, Loss] = objective(batch, 0.0)
        return torch.stack([loss.weight * loss.value for loss in losses.values()]).sum()

    def theirs(_number: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            losses = peer(as_floats, targets)
        return torch.stack(list(losses.values())).sum()

    steps = {"student": step_of(list(objective.parameters()), ours), "peer": step_of(list(peer.parameters()), theirs)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.steps):
        for name, step in steps.items():
            seconds[name].append(step(number))
    medians = {name: statistics.median(values[2:]) for name, values in seconds.items()}
    ratio = medians["student"] / medians["peer"]
    sizes = {"student": _millions(objective), "peer": _millions(peer)}
    for name in steps:
        console.print(
            f"{name:>8}: {medians[name] * 1000:,.0f} ms a step of {options.batch}, {sizes[name]:.2f} M weights"
        )
    console.print(f"student / torchvision: {ratio:.2f} (at most {_LIMIT})")
    parts = _parts(objective, ours, options.steps)
    console.print("parts of the student's own step: " + ", ".join(f"{n} {s * 1000:,.0f} ms" for n, s in parts.items()))
    share = parts["optimizer"] / (parts["forward"] + parts["backward"])
    console.print(f"optimizer / forward and backward: {share:.2f} (at most {_OPTIMIZER_LIMIT})")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    metrics = {"options": {**asdict(options), "output": str(options.output)}, "bfloat16": bfloat16}
    options.output.write_text(json.dumps({**metrics, "medians_s": medians, "ratio": ratio, "parts_s": parts}, indent=1))
    return 0 if ratio <= _LIMIT and share <= _OPTIMIZER_LIMIT else 1


def _parts(objective: DetectionObjective, losses: Callable[[int], Tensor], steps: int) -> dict[str, float]:
    """Return the median seconds of forward, backward and optimizer, of torch's Muon beside it for the same weights."""
    optimizer = build_optimizer(objective.parameter_groups(), OptimizerConfig(learning_rate=1e-4), bfloat16=False)
    optimizer.set_lr(1e-4)
    hidden = objective.parameter_groups()[0].hidden
    matrices = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in hidden]
    torchs = torch.optim.Muon(matrices, lr=1e-4, adjust_lr_fn="match_rms_adamw")
    seconds: dict[str, list[float]] = {name: [] for name in ("forward", "backward", "optimizer", "torch's Muon alone")}
    for number in range(steps):
        marks = [time.perf_counter()]
        optimizer.zero_grad()
        total = losses(number)
        marks.append(time.perf_counter())
        total.backward()
        marks.append(time.perf_counter())
        for matrix, weight in zip(matrices, hidden, strict=True):
            assert weight.grad is not None
            matrix.grad = weight.grad.flatten(1).clone()
        began = time.perf_counter()
        optimizer.step()
        marks.append(marks[-1] + time.perf_counter() - began)
        torchs.step()
        marks.append(marks[-1] + time.perf_counter() - began - (marks[-1] - marks[-2]))
        for name, (before, after) in zip(seconds, itertools.pairwise(marks), strict=True):
            seconds[name].append(after - before)
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def _millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Options, description=__doc__), Console()))
