"""Does a device compute what a CPU computes? Checks that tests assert and the GPU benchmark prints."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datalake.sample import Sample
from student.config import StudentConfig, StudentError
from student.export import compare, export_student, load_program
from teachers.sparse.choice import BackendName
from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.point_teacher import LidarTeacher
from teachers.spvnas.scan import Scan
from teachers.spvnas.state_dict_adapter import adapt, load_strictly
from teachers.target import Target
from tests.support.data import data
from tests.support.training_step import (
    batch_of,
    build_objective,
    loss_sums,
    losses_of,
    open_teacher,
    proposals,
    train_in_memory,
)

_CPU = torch.device("cpu")
# Losses below this are compared by their difference: a share of next to nothing says nothing.
_LEAST_LOSS = 1e-3
# Gradients shorter than this share of the longest are rounding.
_LEAST_GRADIENT = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A figure and what it has to be: at most `most`, or at least `least`; neither: it is only to be known."""

    name: str
    value: float
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def bound(self) -> str:
        """What it has to be, in words."""
        bounds = {"<=": self.most, ">=": self.least}
        return ", ".join(f"{sign} {value:g}" for sign, value in bounds.items() if value is not None)

    @property
    def passed(self) -> bool:
        """Whether it is within its bounds; what is not a number never is."""
        return (
            math.isfinite(self.value)
            and (self.most is None or self.value <= self.most)
            and (self.least is None or self.value >= self.least)
        )


@contextmanager
def exact_float32() -> Iterator[None]:
    """Multiply float32 as float32 in the block, not in TF32 with its 10 bits."""
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = False
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def spvnas_golden(device: torch.device, backend: BackendName) -> list[Check]:
    """SPVNAS@65G on a real scan against what the authors' own code gave (torchsparse 1.4, CPU, seeded weights)."""
    network = SPVCNN(
        NetworkConfig.from_net_config(json.loads(data("spvnas_65gmacs_net_config.json").read_text())), backend
    )
    shapes = json.loads(data("spvnas_65gmacs_state_dict_shapes.json").read_text())
    weights = _module(data("seeded_weights.py")).seeded_weights(shapes)
    load_strictly(
        network, adapt({key: torch.from_numpy(value) for key, value in weights.items()}), "the seeded weights"
    )
    scan = Scan.from_semantickitti(data("semantickitti_000000.bin"))
    with exact_float32():
        (prediction,) = LidarTeacher(network.to(device)).predict([scan])
    with np.load(data("spvnas_official_golden.npz")) as golden:
        points = golden["point_index"][golden["rows"]]
        pairs = {"logits": (prediction.logits, golden["logits"]), "features": (prediction.features, golden["features"])}
        checks = []
        for name, (ours, theirs) in pairs.items():
            rows = ours[points].float().cpu().numpy()
            if np.array_equal(theirs.astype(np.float16), theirs):
                # The file's features are rounded; rounded alike, they differ by what the networks do.
                rows = rows.astype(np.float16).astype(np.float32)
            worst = (np.linalg.norm(rows - theirs, axis=1) / np.linalg.norm(theirs, axis=1)).max()
            error = float(np.linalg.norm(rows - theirs) / np.linalg.norm(theirs))
            checks.append(
                Check(name=f"SPVNAS golden {name}, {backend}", value=error, most=1e-4, note=f"worst row {worst:.1e}")
            )
    return checks


def lidar_teacher(
    url: str, samples: Sequence[Sample], grid: tuple[int, int], device: torch.device, backend: BackendName
) -> list[Check]:
    """The lidar teacher's answers on the device against the CPU's."""
    with exact_float32():
        ours = _to_cpu(open_teacher(url, device, backend).predict(samples, *grid))
    theirs = open_teacher(url, "cpu", "plain").predict(samples, *grid)
    return [
        Check(
            name=f"lidar cells valid on one side only, {backend}",
            value=float((ours.valid != theirs.valid).sum()),
            most=0,
            note=f"of {int(theirs.valid.sum())} valid",
        ),
        Check(name=f"lidar features, {backend}", value=relative(ours.values, theirs.values), most=1e-3),
    ]


def backends_agree(
    url: str, samples: Sequence[Sample], grid: tuple[int, int], device: torch.device, backend: BackendName
) -> list[Check]:
    """A backend against plain on the same device, over ever more clouds that go through together."""
    asked, plain = open_teacher(url, device, backend), open_teacher(url, device, "plain")
    checks = []
    with exact_float32():
        for clouds in sorted({min(count, len(samples)) for count in (2, 8, 16)}):
            ours, theirs = (one.predict(samples[:clouds], *grid).values for one in (asked, plain))
            # torchsparse multiplies float32 in TF32 whatever is asked.
            checks.append(
                Check(name=f"{backend} against plain, {clouds} clouds", value=relative(ours, theirs), most=3e-3)
            )
    return checks


def mask_teacher(url: str, samples: Sequence[Sample], grid: tuple[int, int], device: torch.device) -> list[Check]:
    """The mask teacher's classes on the device against the CPU's."""
    with exact_float32():
        ours = _to_cpu(open_teacher(url, device).predict(samples, *grid))
    theirs = open_teacher(url, "cpu").predict(samples, *grid)
    equal = float((ours.values == theirs.values).float().mean())
    objects = float((theirs.values > 0).float().mean())
    return [Check(name="mask cells alike", value=equal, least=0.999, note=f"{objects:.1%} of the cells are objects")]


def student_step(
    config: StudentConfig, samples: Sequence[Sample], targets: Mapping[str, Target], device: torch.device
) -> list[Check]:
    """Losses and gradients of one float32 step against the CPU's; the heads get the CPU's proposals."""
    objective = build_objective(config).train()
    other = copy.deepcopy(objective).to(device)
    with proposals(objective) as kept:
        total, theirs = losses_of(objective, batch_of(objective, samples, targets, _CPU))
    total.backward()
    with exact_float32(), proposals(other, kept[0]):
        total, ours = losses_of(other, batch_of(other, samples, targets, device))
        total.backward()
    cosine, where = _least_cosine(other, objective)
    return [
        *(
            Check(name=f"loss {name}", value=_apart(ours[name], loss), most=1e-4, note=_pair(ours, theirs, name))
            for name, loss in theirs.items()
        ),
        Check(name="gradients, least cosine of a parameter", value=cosine, least=0.9999, note=where),
    ]


def bfloat16_step(
    config: StudentConfig, samples: Sequence[Sample], targets: Mapping[str, Target], device: torch.device
) -> list[Check]:
    """Losses and gradient of a step under bfloat16 autocast against float32 on the same device."""
    objective = build_objective(config).train().to(device)
    other = copy.deepcopy(objective)
    with exact_float32(), proposals(objective) as kept:
        total, exact = losses_of(objective, batch_of(objective, samples, targets, device))
        total.backward()
    with proposals(other, kept[0]):
        total, rounded = losses_of(other, batch_of(other, samples, targets, device), bfloat16=True)
    total.backward()
    one, two = (torch.cat([gradient.flatten() for gradient in _gradients(module)]) for module in (other, objective))
    return [
        *(
            Check(
                name=f"bfloat16 loss {name}",
                value=_apart(rounded[name], exact[name]),
                most=0.02,
                note=_pair(rounded, exact, name),
            )
            for name in exact
        ),
        Check(name="bfloat16 gradient, cosine", value=float(nn.functional.cosine_similarity(one, two, 0)), least=0.9),
    ]


def loss_curve(
    config: StudentConfig, samples: Sequence[Sample], device: torch.device, folder: Path, *, muon: float, steps: int
) -> list[Check]:
    """A short float32 training against the CPU's. Muon enlarges rounding: with it the figure is only to be known."""
    with exact_float32():
        curves = {
            name: loss_sums(
                train_in_memory(
                    build_objective(config), samples, folder / f"muon-{muon:g}-{name}", where,
                    batch=min(4, len(samples)), steps=steps, muon=muon,
                )
            )
            for name, where in (("here", device), ("there", _CPU))
        }  # fmt: skip
    ours, theirs = curves["here"], curves["there"]
    furthest = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    apart = abs(sum(ours) - sum(theirs)) / sum(theirs)
    note = f"one step at most {furthest:.1e}; {theirs[0]:.3f} to {theirs[-1]:.3f}, here to {ours[-1]:.3f}"
    return [
        Check(name=f"{steps} steps, muon {muon:g}: mean loss", value=apart, most=None if muon else 0.02, note=note),
        Check(name=f"{steps} steps, muon {muon:g}: last / first loss", value=ours[-1] / ours[0], most=0.99),
    ]


def resumed_training(
    config: StudentConfig, samples: Sequence[Sample], device: torch.device, folder: Path, *, steps: int
) -> list[Check]:
    """A training that goes on from its checkpoint of half-way against the one that did not stop there.

    Behind the first step what a device does not repeat grows, and Muon enlarges it: that is only to be known.
    """
    half = steps // 2
    settings: dict[str, Any] = {"batch": min(4, len(samples)), "steps": steps, "checkpoint_every": half}

    def keep(step: int, _values: Mapping[str, float]) -> None:
        if step == half:
            shutil.copytree(folder / "whole", folder / "stopped")

    whole = train_in_memory(build_objective(config), samples, folder / "whole", device, **settings, on_step=keep)
    rest = train_in_memory(build_objective(config, seed=1), samples, folder / "stopped", device, **settings)
    if len(rest) != steps - half:
        raise AssertionError(f"expected to go on at step {half}, did {len(rest)} of {steps} steps")
    pairs = zip(loss_sums(rest), loss_sums(whole[half:]), strict=True)
    first, *others = (abs(a - b) / b for a, b in pairs)
    return [
        Check(name="resumed training: first step behind the checkpoint", value=first, most=1e-4),
        Check(name="resumed training: worst step", value=max(others, default=first)),
    ]


def repeated_step(
    config: StudentConfig, samples: Sequence[Sample], targets: Mapping[str, Target], device: torch.device
) -> list[Check]:
    """The same step twice on the same device: what the device itself does not repeat."""
    gradients = []
    for _ in range(2):
        objective = build_objective(config).train().to(device)
        total, _ = losses_of(objective, batch_of(objective, samples, targets, device))
        total.backward()
        gradients.append(torch.cat([gradient.flatten() for gradient in _gradients(objective)]))
    return [Check(name="one step twice: gradient", value=relative(*gradients), most=1e-3)]


def exported_program(
    config: StudentConfig, samples: Sequence[Sample], device: torch.device, folder: Path, *, steps: int
) -> list[Check]:
    """An exported student, moved to the device, against the student there.

    steps: what it is trained for before: untrained, all of its scores are alike and rounding decides
    """
    objective = build_objective(config)
    train_in_memory(objective, samples, folder / "run", device, batch=min(4, len(samples)), steps=steps)
    student = objective.student.eval()
    images = [sample.image for sample in samples[:4]]
    try:
        on_cpu = export_student(student, str(folder / "export"), images)
        program = load_program(str(folder / "export"), device)
        with exact_float32():
            moved = compare(student.to(device), program, [image.to(device) for image in images])
    except StudentError as error:
        return [Check(name="exported program", value=math.nan, note=str(error))]
    return [
        Check(name="exported program on the CPU, px", value=on_cpu.box_px, most=1e-3),
        Check(
            name=f"exported program on {device.type}, px",
            value=moved.box_px,
            most=1e-3,
            note=f"{moved.detections} detections",
        ),
    ]


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Return |ours - theirs| / |theirs|, or NaN where there is nothing to compare with."""
    scale = float(theirs.double().norm())
    return float((ours.double() - theirs.double()).norm()) / scale if scale else math.nan


def _apart(one: Tensor, other: Tensor) -> float:
    a, b = float(one.detach()), float(other.detach())
    return abs(a - b) / max(abs(b), _LEAST_LOSS)


def _pair(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], name: str) -> str:
    return f"{float(ours[name].detach()):.5f} and {float(theirs[name].detach()):.5f}"


def _gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad.detach() for parameter in module.parameters() if parameter.grad is not None]


def _least_cosine(ours: nn.Module, theirs: nn.Module) -> tuple[float, str]:
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {name: p.grad.cpu() for name, p in ours.named_parameters() if p.grad is not None}
    if found.keys() != expected.keys():
        return math.nan, f"gradients of other parameters: {', '.join(sorted(found.keys() ^ expected.keys()))}"
    longest = max(float(gradient.norm()) for gradient in expected.values())
    cosines = {
        name: float(nn.functional.cosine_similarity(found[name].double().flatten(), gradient.double().flatten(), 0))
        for name, gradient in expected.items()
        if float(gradient.norm()) > _LEAST_GRADIENT * longest
    }
    where = min(cosines, key=cosines.__getitem__)
    return cosines[where], f"{where}, of {len(cosines)} parameters"


def _to_cpu(target: Target) -> Target:
    return Target(target.keys, target.values.cpu(), target.valid.cpu())


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
