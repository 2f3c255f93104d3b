"""BYOL of places that lidar finds again in the camera's next image: exact pairs, through motion and changing scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import grid_sample, normalize

from datalake.sample import Sample
from student.config import StudentConfig, StudentError
from student.pretraining.byol import byol_loss
from student.pretraining.collapse import FLATNESS, RecentVectors
from student.pretraining.correspondence import Correspondences, correspondences
from student.pretraining.self_distillation import HeadNorm, SelfDistillation, head, pairs_of, pooled
from student.pretraining.views import Crop, ViewConfig, Views, show
from training.generators import Chance
from training.objective import Batch, Loss


@dataclass(frozen=True, kw_only=True)
class ByolLidarConfig:
    """The heads, and how many places of a pair are compared."""

    # Neurons of the hidden layer of projectors and predictors.
    hidden: int = 512
    # Dimensions of projections and predictions.
    dimensions: int = 128
    # The norm in the heads; see `ByolConfig`.
    head_norm: HeadNorm = "batch"
    # Places of a pair of images, at most; half of them above the ground, or else most would be road.
    places: int = 256
    # Width and height of the crops around one of these, of both images, in pixels of the images.
    crop: int = 64
    # Weight of the loss of places.
    dense: float = 1.0
    # Weight of BYOL's loss of the crops around one.
    pooled: float = 1.0
    # The target's momentum in the first step; see `ByolConfig`.
    momentum: float = 0.97
    # Vectors that tell whether the representation has collapsed.
    recent: int = 1024


@dataclass(frozen=True, slots=True, eq=False)
class LidarViews:
    """Two views of each of B pairs, crops around a place in both images, and where both show the same places.

    views: of the whole images
    around: crops of those pairs that have a place, [b, 3, h, w] each, which may be none
    places: float32 [2, B, P, 2], in the first and the second view, x and y within -1 … 1 from border to border
    there: bool [B, P], which of these there are
    """

    views: Views
    around: tuple[Tensor, Tensor]
    places: Tensor
    there: Tensor


class ByolLidarObjective(SelfDistillation):
    """BYOL's loss of places that lidar has found in both images, and of crops around one of them, both ways round.

    Crops around things above the ground give each of them the same say, however few pixels it has.
    """

    name = "byol-lidar"
    last_flatness: Tensor

    def __init__(self, student: StudentConfig, config: ByolLidarConfig, views: ViewConfig) -> None:
        """Build it with random weights; raises StudentError where there is no such trunk."""
        super().__init__(student, views, config.momentum)
        self._settings = config
        self._around = replace(views, size=(config.crop, config.crop))
        sizes = config.hidden, config.dimensions, config.head_norm
        self.projector = head(self.pooled_width, *sizes)
        self.predictor = head(config.dimensions, *sizes)
        self.place_projector = head(self.trunk.width, *sizes)
        self.place_predictor = head(config.dimensions, *sizes)
        self.target_projector = deepcopy(self.projector).requires_grad_(False)
        self.target_place_projector = deepcopy(self.place_projector).requires_grad_(False)
        self.recent = RecentVectors(config.recent, config.dimensions)
        self.recent_places = RecentVectors(config.recent, config.dimensions)
        self.register_buffer("last_flatness", torch.zeros(()), persistent=False)

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the projectors."""
        return [(self.target_projector, self.projector), (self.target_place_projector, self.place_projector)]

    def collate(self, batch: Batch, targets: Mapping[str, Any], chance: Chance) -> LidarViews:
        """Return views of each pair, and where they show the same places."""
        del targets
        first, second = pairs_of(batch)
        _check(batch.samples)
        count = len(first)
        views = self.normalized_views(first, second, chance.generators("views")[:count])
        found = [correspondences(one, other) for one, other in zip(first, second, strict=True)]
        generators = chance.generators("places")[:count]
        places, there = [], []
        for pair, crops, generator in zip(found, views.crops, generators, strict=True):
            chosen = visible_places(pair, crops, self._settings.places, generator)
            places.append(chosen)
            there.append(len(chosen[0]))
        device = self.image_mean.device
        padded = torch.zeros(2, count, self._settings.places, 2)
        for number, chosen in enumerate(places):
            padded[:, number, : there[number]] = torch.from_numpy(chosen).float()
        valid = torch.arange(self._settings.places) < torch.tensor(there)[:, None]
        around = self._crops_around(first, second, found, generators)
        return LidarViews(views, around, padded.to(device), valid.to(device))

    def _crops_around(
        self,
        first: Sequence[Sample],
        second: Sequence[Sample],
        found: Sequence[Correspondences],
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, Tensor]:
        """Return a crop of each image around a place of its pair, above the ground where there is one."""
        crops: tuple[list[Crop], list[Crop]] = ([], [])
        with_places = [number for number, pair in enumerate(found) if len(pair)]
        for number in with_places:
            pair = found[number]
            among = np.flatnonzero(pair.raised) if pair.raised.any() else np.arange(len(pair))
            drawn = torch.rand(3, generator=generators[number], dtype=torch.float64).tolist()
            place = among[int(drawn[0] * len(among))]
            for side, (images, where) in enumerate(((first, pair.first), (second, pair.second))):
                mirrored = drawn[1 + side] < self._views.mirror
                crops[side].append(_around(where[place], images[number].image, self._settings.crop, mirrored))
        size = self._settings.crop
        if not with_places:
            nothing = torch.zeros(0, 3, size, size, device=self.image_mean.device)
            return nothing, nothing
        some = [generators[number] for number in with_places]
        shown = [
            show([images[n].image for n in with_places], crops[side], side, some, self._around, self.image_mean.device)
            for side, images in enumerate((first, second))
        ]
        return self.normalized(shown[0]), self.normalized(shown[1])

    def forward(self, batch: LidarViews, progress: float) -> dict[str, Loss]:
        """Return the losses `byol-lidar`, of places, and `byol`, of crops around them, each 0 … 8; 0 without any."""
        del progress
        images = torch.cat([batch.views.first, batch.views.second])
        fine = self.trunk(images).fine
        with torch.no_grad():
            target_fine = self.target_trunk(images).fine
        with torch.autocast(images.device.type, enabled=False):
            rows, target_rows = (self._at_places(each.float(), batch) for each in (fine, target_fine))
            projected = self.place_projector(rows)
            predicted = self.place_predictor(projected)
            with torch.no_grad():
                expected = self.target_place_projector(target_rows)
            dense = _both_ways(predicted, expected)
            if self.training:
                of_first = projected[: len(projected) // 2]
                # They are in a random order.
                starts = batch.there.sum(1).cumsum(0) - batch.there.sum(1)
                self.recent_places.append(of_first[starts[batch.there.any(1)]])
                self.last_flatness = _flatness(of_first.detach(), batch.there).float()
        return {
            "byol-lidar": Loss(dense, self._settings.dense),
            "byol": Loss(self._pooled_loss(batch), self._settings.pooled),
        }

    def _at_places(self, maps: Tensor, batch: LidarViews) -> Tensor:
        """Return what maps [2 B, D, h, w] have at the places that there are: those of first views, then of second."""
        grid = batch.places.flatten(0, 1)[:, :, None]
        sampled = grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
        rows = sampled[..., 0].transpose(1, 2).unflatten(0, (2, -1))
        return rows[:, batch.there].flatten(0, 1)

    def _pooled_loss(self, batch: LidarViews) -> Tensor:
        images = torch.cat(batch.around)
        # A batch norm takes two rows at least.
        if len(images) < 2:
            return batch.places.new_zeros(())
        features = pooled(self.trunk(images))
        with torch.no_grad():
            target_features = pooled(self.target_trunk(images))
        with torch.autocast(images.device.type, enabled=False):
            projected = self.projector(features)
            if self.training:
                self.recent.append(projected[: len(images) // 2])
            with torch.no_grad():
                expected = self.target_projector(target_features)
            return _both_ways(self.predictor(projected), expected)

    def diagnostics(self, batch: LidarViews, progress: float) -> dict[str, Tensor]:
        """Return `collapse_metrics` of recent crops and places, how alike a view's cells are, and places of a pair."""
        del progress
        whole = self.recent.metrics() if self._settings.pooled else {}
        places = {"places": batch.there.sum(1).float().mean()}
        return {**whole, **self.recent_places.metrics("places"), FLATNESS: self.last_flatness, **places}


def _check(samples: Sequence[Sample]) -> None:
    """Raise StudentError where no places could ever be found: the run would learn from nothing."""
    for sample in samples:
        if sample.exposed_vehicle_to_world is None or sample.camera_to_vehicle is None or sample.intrinsic is None:
            raise StudentError(f"{sample.key}: no pose or calibration; byol-lidar needs them, choose another --method")
    if all(sample.lidar is None or not len(sample.lidar.pixel_depth_m) for sample in samples):
        raise StudentError(f"{samples[0].key}: no lidar returns on any image of the batch; choose another --method")


def visible_places(
    pair: Correspondences, crops: tuple[Crop, Crop], most: int, generator: torch.Generator
) -> NDArray[np.float64]:
    """Return float64 [2, n, 2], where both views show places: x and y of each view within -1 … 1; `most` at most.

    Half of them are above the ground, or as many as there are.
    """
    both = np.stack([_in_view(pair.first, crops[0]), _in_view(pair.second, crops[1])])
    seen = np.flatnonzero((np.abs(both) < 1).all((0, 2)))
    shuffled = seen[torch.randperm(len(seen), generator=generator).numpy()]
    raised = pair.raised[shuffled]
    # Each kind gives half, and what the other has too little of.
    of_raised = min(int(raised.sum()), max(most // 2, most - int((~raised).sum())))
    kept = np.concatenate([np.flatnonzero(raised)[:of_raised], np.flatnonzero(~raised)[: most - of_raised]])
    # In the random order: what is measured of the first ones is measured of both kinds.
    chosen = shuffled[np.sort(kept)]
    return both[:, chosen]


@torch.no_grad()
def _flatness(rows: Tensor, there: Tensor) -> Tensor:
    """Return the mean cosine of different places of one image, over images; rows [n, d]: those that are `there`."""
    image = there.nonzero()[:, 0]
    unit = normalize(rows.double(), dim=1)
    sums = torch.zeros(len(there), rows.shape[1], dtype=torch.float64, device=rows.device).index_add_(0, image, unit)
    counts = there.sum(1).double()
    several = counts > 1
    cosines = (sums.square().sum(1) - counts) / (counts * (counts - 1)).clamp(min=1)
    return (cosines * several).sum() / several.sum().clamp(min=1)


def _in_view(pixels: NDArray[np.float64], crop: Crop) -> NDArray[np.float64]:
    low, high = np.array([crop.x0, crop.y0]), np.array([crop.x1, crop.y1])
    scaled = 2 * (pixels - low) / (high - low) - 1
    return scaled * (-1, 1) if crop.mirrored else scaled


def _around(pixel: NDArray[np.float64], image: Tensor, size: int, mirrored: bool) -> Crop:
    """Return the crop of the size around a pixel, moved so far that it is within the image."""
    height, width = image.shape[1:]
    wide, high = min(size, width), min(size, height)
    x, y = (
        int(min(max(round(float(center) - side / 2), 0), most - side))
        for center, side, most in zip(pixel, (wide, high), (width, height), strict=True)
    )
    return Crop(x, y, x + wide, y + high, mirrored)


def _both_ways(predicted: Tensor, expected: Tensor) -> Tensor:
    """Return BYOL's loss of rows, those of first views and then those of second ones; 0 without any."""
    if not len(predicted):
        return predicted.sum()
    (first, second), (of_first, of_second) = predicted.chunk(2), expected.chunk(2)
    return byol_loss(first, of_second) + byol_loss(second, of_first)
