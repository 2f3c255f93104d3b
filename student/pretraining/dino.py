"""DINO (Caron et al. 2021): a student says what its moving average says of other crops, among many prototypes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, log_softmax, normalize

from student.config import StudentConfig
from student.pretraining.collapse import ENTROPY, MEAN_ENTROPY, VECTORS, RecentVectors
from student.pretraining.self_distillation import follow, momentum_at, pairs_of, pooled
from student.pretraining.views import ViewConfig, draw_crop, make_views, show
from student.pretraining.vit import Vit, VitConfig
from student.trunk import build_trunk, resolved, trunk_settings
from training.fingerprint import Plain, flatten
from training.generators import Chance
from training.objective import Batch, Loss, Objective, ParameterGroup

_TRUNCATED = 0.02


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """Network, head, temperatures and crops; values for up to some ten thousand images and small batches."""

    # What learns: the student's trunk, its maps averaged, or a small vision transformer, whose attention can be seen.
    network: Literal["trunk", "vit"] = "trunk"
    # The transformer, where that learns.
    vit: VitConfig = field(default_factory=VitConfig)
    # Prototypes, among which answers choose.
    prototypes: int = 1024
    # Neurons of the head's two hidden layers.
    hidden: int = 512
    # Dimensions of what is compared with prototypes.
    bottleneck: int = 64
    # Temperature of the student's answers.
    student_temperature: float = 0.1
    # Temperature of the teacher's answers in the first step, and at the end of its warm-up.
    teacher_temperatures: tuple[float, float] = (0.02, 0.03)
    # Share of the steps in which the teacher's temperature changes.
    warmup: float = 0.3
    # The prototypes stay as they are for such a share of the steps.
    frozen: float = 0.05
    # How much of the center of the teacher's answers stays in a step.
    center_momentum: float = 0.9
    # The teacher's momentum in the first step; see `ByolConfig`.
    momentum: float = 0.99
    # Small crops of each pair, half of them of the first image.
    crops: int = 4
    # Width and height of a small crop in pixels.
    crop_size: tuple[int, int] = (64, 32)
    # Smallest and largest share of the image that a small crop shows.
    crop_area: tuple[float, float] = (0.06, 0.3)
    # Vectors that tell whether the representation has collapsed.
    recent: int = 1024


class DinoHead(nn.Module):
    """Three layers, a vector of length 1, and its cosines with prototypes."""

    def __init__(self, inputs: int, config: DinoConfig) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, config.hidden)
        self.second = nn.Linear(config.hidden, config.hidden)
        self.third = nn.Linear(config.hidden, config.bottleneck)
        self.prototypes = nn.Parameter(torch.empty(config.prototypes, config.bottleneck))
        for layer in (self.first, self.second, self.third):
            nn.init.trunc_normal_(layer.weight, std=_TRUNCATED)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.prototypes)

    def embed(self, features: Tensor) -> Tensor:
        """Return vectors of length 1 [n, bottleneck] of features [n, D]."""
        return normalize(self.third(gelu(self.second(gelu(self.first(features))))), dim=1)

    def answer(self, embedded: Tensor, frozen: bool = False) -> Tensor:
        """Return the cosines [n, K] of vectors of length 1 with the prototypes; frozen: these get no gradient."""
        return linear(embedded, normalize(self.prototypes.detach() if frozen else self.prototypes, dim=1))

    def forward(self, features: Tensor, frozen: bool = False) -> Tensor:
        """Return the answers [n, K] to features [n, D]."""
        return self.answer(self.embed(features), frozen)


@dataclass(frozen=True, slots=True, eq=False)
class MultiCrop:
    """Views of each of B pairs, normalized.

    large: float32 [2, B, 3, h, w], one of each image; small: float32 [crops, B, 3, h', w']
    """

    large: Tensor
    small: Tensor


class DinoObjective(Objective):
    """Cross-entropy of the student's answers to each crop and the teacher's to the other large ones.

    The teacher is what the training is for: `trunk` or `vit`. It follows `online`, which alone has a gradient.
    """

    image_mean: Tensor
    image_std: Tensor
    center: Tensor
    seen_center: Tensor

    def __init__(self, student: StudentConfig, config: DinoConfig, views: ViewConfig) -> None:
        """Build it with random weights; raises StudentError where there is no such network."""
        super().__init__()
        self._student, self._settings, self._views = resolved(student), config, views
        self._small = replace(views, size=config.crop_size, area=config.crop_area, blur=(0.5, 0.5), solarize=(0.0, 0.0))
        self.online: nn.Module
        if config.network == "vit":
            self.online = Vit(config.vit)
            self.vit = deepcopy(self.online).requires_grad_(False)
            width = config.vit.dimensions
        else:
            trunk = build_trunk(student)
            self.online = trunk
            self.trunk = deepcopy(trunk).requires_grad_(False)
            width = trunk.width + sum(trunk.coarse_widths)
        self.head = DinoHead(width, config)
        self.teacher_head = deepcopy(self.head).requires_grad_(False)
        self.register_buffer("center", torch.zeros(config.prototypes))
        # Sum of the teacher's answers since the last step, and in the last place how many.
        self.register_buffer("seen_center", torch.zeros(config.prototypes + 1), persistent=False)
        self.recent = RecentVectors(config.recent, config.bottleneck)
        self.recent_answers = RecentVectors(config.recent, config.prototypes)
        for name in ("image_mean", "image_std"):
            color = torch.tensor(getattr(self._student, name))
            self.register_buffer(name, color[:, None, None], persistent=False)

    def collate(self, batch: Batch, targets: Mapping[str, Any], chance: Chance) -> MultiCrop:
        """Return crops of each pair: a large one of each image, small ones of both in turn."""
        del targets
        first, second = ([sample.image for sample in some] for some in pairs_of(batch))
        device, count = self.image_mean.device, len(first)
        views = make_views(first, second, chance.generators("views")[:count], self._views, device)
        generators, small = chance.generators("small crops")[:count], []
        height, width = first[0].shape[1:]
        for number in range(self._settings.crops):
            crops = [draw_crop(width, height, self._small, generator) for generator in generators]
            small.append(show((first, second)[number % 2], crops, 0, generators, self._small, device))
        large = self._normalized(torch.stack([views.first, views.second]))
        return MultiCrop(large, self._normalized(torch.stack(small)) if small else large[:0])

    def _normalized(self, images: Tensor) -> Tensor:
        return (images - self.image_mean) / self.image_std

    @property
    def teacher(self) -> nn.Module:
        """The network that the training is for."""
        return self.vit if self._settings.network == "vit" else self.trunk

    def features(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return float32 [n, D], one vector for each image."""
        found = network(images)
        return found.whole.float() if self._settings.network == "vit" else pooled(found)

    def forward(self, batch: MultiCrop, progress: float) -> dict[str, Loss]:
        """Return the loss `dino`; ln K where the student knows nothing."""
        config, count = self._settings, batch.large.shape[1]
        large = batch.large.flatten(0, 1)
        with torch.no_grad():
            target = self.features(self.teacher, large)
        parts = [self.features(self.online, large)]
        if len(batch.small):
            parts.append(self.features(self.online, batch.small.flatten(0, 1)))
        with torch.autocast(large.device.type, enabled=False):
            said = self.head(torch.cat(parts), frozen=progress < config.frozen).unflatten(0, (-1, count))
            with torch.no_grad():
                embedded = self.teacher_head.embed(target)
                answers = self.teacher_head.answer(embedded).unflatten(0, (2, count))
                probabilities = sharpened(answers, self.center, temperature_at(progress, config))
            loss = dino_loss(probabilities, said, config.student_temperature)
        if self.training:
            self._remember(embedded[:count], probabilities[0], answers.flatten(0, 1))
        return {"dino": Loss(loss)}

    @torch.no_grad()
    def _remember(self, embedded: Tensor, probabilities: Tensor, answers: Tensor) -> None:
        self.recent.append(embedded)
        self.recent_answers.append(probabilities)
        self.seen_center[:-1] += answers.sum(0)
        self.seen_center[-1] += len(answers)

    def diagnostics(self, batch: MultiCrop, progress: float) -> dict[str, Tensor]:
        """Return the entropies of the teacher's recent answers, and `embedding/…`, how far what they are of is spread.

        The mean over one batch has few classes however many the teacher knows. What all embedded vectors share tells
        of no collapse: the center takes it away.
        """
        del batch, progress
        answers = self.recent_answers.vectors[: int(self.recent_answers.count)].double()
        most = math.log(self._settings.prototypes)
        return {
            **{name.replace("collapse/", "embedding/"): value for name, value in self.recent.metrics().items()},
            VECTORS: self.recent_answers.count.clamp(max=len(self.recent_answers.vectors)).float(),
            ENTROPY: torch.special.entr(answers).sum(1).mean() / most,
            MEAN_ENTROPY: torch.special.entr(answers.mean(0)).sum() / most,
        }

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Have the teacher follow, and the center of its answers."""
        momentum = momentum_at(progress, self._settings.momentum)
        for slow, fast in ((self.teacher, self.online), (self.teacher_head, self.head)):
            follow(slow, fast, momentum)
        seen = self.seen_center[:-1] / self.seen_center[-1].clamp(min=1)
        kept = self._settings.center_momentum
        self.center.copy_(torch.where(self.seen_center[-1] > 0, kept * self.center + (1 - kept) * seen, self.center))
        self.seen_center.zero_()

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return network and head in one group, all of them AdamW's."""
        return [ParameterGroup("dino", [p for p in self.parameters() if p.requires_grad], [])]

    def product(self) -> nn.Module:
        """Return the teacher's network."""
        return self.teacher

    def config(self) -> str:
        """Return as JSON the configuration of a student with this trunk, or of the transformer."""
        return self._settings.vit.to_json() if self._settings.network == "vit" else self._student.to_json()

    def fingerprint(self) -> dict[str, Plain]:
        """Return the network's architecture."""
        if self._settings.network == "vit":
            return {f"vit.{name}": value for name, value in flatten(self._settings.vit).items()}
        return {f"student.{name}": value for name, value in trunk_settings(self._student).items()}


def temperature_at(progress: float, config: DinoConfig) -> float:
    """Return the teacher's temperature: it goes evenly from the first to the second, then stays."""
    first, last = config.teacher_temperatures
    return first + (last - first) * min(1.0, progress / config.warmup if config.warmup else 1.0)


def sharpened(answers: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Return the teacher's probabilities [..., K] of cosines [..., K], the center of all taken out."""
    return ((answers - center) / temperature).softmax(-1)


def dino_loss(probabilities: Tensor, said: Tensor, temperature: float) -> Tensor:
    """Return the mean over pairs of different views of the mean cross-entropy of the student's answers.

    probabilities: float32 [2, B, K], the teacher's of the large views; said: float32 [V, B, K], the student's cosines
    of all, large ones first
    """
    logs = log_softmax(said / temperature, dim=-1)
    terms = [
        -(probability * other).sum(-1).mean()
        for one, probability in enumerate(probabilities)
        for number, other in enumerate(logs)
        if number != one
    ]
    return torch.stack(terms).mean()
