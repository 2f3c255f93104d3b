"""Two views of a pair of images: crops, of which it is known what they show, in changed colors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Crops are drawn so often until two overlap enough.
_TRIES = 20
# Gaussian blur of Grill et al. (2020), in pixels of images of that height; below the other it would do nothing.
_BLUR_PX, _BLUR_HEIGHT, _LEAST_HEIGHT = (0.1, 2.0), 224, 96
# Luma and the two axes of color of NTSC.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = torch.linalg.inv(_YIQ)


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """What the two views of a pair may differ in; Grill et al. (2020) but for the crops.

    Theirs show down to 8 % of an image: two such crops of a street show different things, which are not alike.
    """

    # Width and height of a view in pixels.
    size: tuple[int, int] = (128, 96)
    # Smallest and largest share of the image that a crop shows.
    area: tuple[float, float] = (0.3, 1.0)
    # Smallest and largest width over height of a crop; what is beyond the image is cut off.
    aspect: tuple[float, float] = (1.2, 1.8)
    # The two crops of a pair share so much of the smaller one, at least.
    overlap: float = 0.3
    # Share of the views that are mirrored.
    mirror: float = 0.5
    # Share of the views whose colors change.
    jitter: float = 0.8
    # Their brightness, by a factor within 1 ± this.
    brightness: float = 0.4
    # Their contrast, by a factor within 1 ± this.
    contrast: float = 0.4
    # Their saturation, by a factor within 1 ± this.
    saturation: float = 0.2
    # Their hue, by so much of a turn at most.
    hue: float = 0.1
    # Share of the views that are gray.
    gray: float = 0.2
    # Share of first and of second views that are blurred; views less than 96 pixels high never are.
    blur: tuple[float, float] = (1.0, 0.1)
    # Share of first and of second views whose bright pixels are inverted.
    solarize: tuple[float, float] = (0.0, 0.2)


@dataclass(frozen=True, slots=True)
class Crop:
    """What a view shows: x0 <= x < x1 and y0 <= y < y1 of the full image in pixels, mirrored afterwards or not.

    Cell [row i, column j] of a view of w x h pixels has its center at x0 + (j + .5) (x1 - x0) / w, y0 + (i + .5)
    (y1 - y0) / h; in one that is mirrored, w - 1 - j stands for j.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    mirrored: bool

    @property
    def area(self) -> int:
        """Pixels of the image."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def shared(self, other: Crop) -> float:
        """Return which share of the smaller crop the other shows as well."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(0, width) * max(0, height) / min(self.area, other.area)


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """Two views of each of B pairs.

    first, second: float32 [B, 3, h, w] within 0 … 1
    crops: what of their images the two of each pair show: by it, losses of places in an image tell which cells of the
        one view show what cells of the other do
    """

    first: Tensor
    second: Tensor
    crops: list[tuple[Crop, Crop]]


def make_views(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    generators: Sequence[torch.Generator],
    config: ViewConfig,
    device: torch.device,
) -> Views:
    """Return two views of each pair: of images uint8 [3, H, W], the second ones as large as the first ones.

    generators: one on the CPU for each pair, from which all its numbers are drawn
    """
    crops = [
        draw_crops(image.shape[-1], image.shape[-2], config, generator)
        for image, generator in zip(first, generators, strict=True)
    ]
    shown = [
        show(images, [pair[number] for pair in crops], number, generators, config, device)
        for number, images in enumerate((first, second))
    ]
    return Views(shown[0], shown[1], crops)


def show(
    images: Sequence[Tensor],
    crops: Sequence[Crop],
    number: int,
    generators: Sequence[torch.Generator],
    config: ViewConfig,
    device: torch.device,
) -> Tensor:
    """Return float32 [B, 3, h, w] within 0 … 1: a crop of each image uint8 [3, H, W], in changed colors.

    number: 0 or 1, as which of two views they are blurred and inverted
    generators: one on the CPU for each image, from which its colors are drawn
    """
    colors = torch.stack([_draw_colors(number, config, generator) for generator in generators])
    shown = [cut(image.to(device), crop, config.size) for image, crop in zip(images, crops, strict=True)]
    return _recolored(torch.stack(shown), colors)


def centers(crops: Sequence[Crop], grid: tuple[int, int]) -> Tensor:
    """Return where the centers of a grid's cells [h, w] on each view lie in its full image, float32 [B, h * w, 2]."""
    height, width = grid
    corners = torch.tensor([[crop.x0, crop.y0, crop.x1, crop.y1] for crop in crops], dtype=torch.float32)
    mirrored = torch.tensor([crop.mirrored for crop in crops])
    across, down = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    across = torch.where(mirrored[:, None], 1 - across, across)
    x = corners[:, :1] + across * (corners[:, 2:3] - corners[:, :1])
    y = corners[:, 1:2] + down * (corners[:, 3:] - corners[:, 1:2])
    return torch.stack([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], 3).flatten(1, 2)


def draw_crops(width: int, height: int, config: ViewConfig, generator: torch.Generator) -> tuple[Crop, Crop]:
    """Return the crops of a pair of images; after twenty second ones that overlap too little, the first one twice."""
    first = draw_crop(width, height, config, generator)
    for _ in range(_TRIES):
        second = draw_crop(width, height, config, generator)
        if first.shared(second) >= config.overlap:
            return first, second
    return first, first


def cut(image: Tensor, crop: Crop, size: tuple[int, int]) -> Tensor:
    """Return what the crop shows of an image [C, H, W], float or uint8, as float [C, h, w]; size: w and h.

    Values of uint8 become those within 0 … 1.
    """
    shown = image[None, :, crop.y0 : crop.y1, crop.x0 : crop.x1]
    if shown.dtype == torch.uint8:
        shown = shown.float() / 255
    # Without it a crop that is made smaller would show single pixels of fine texture.
    scaled = functional.interpolate(shown, size[::-1], mode="bilinear", align_corners=False, antialias=True)[0]
    return scaled.flip(-1) if crop.mirrored else scaled


def draw_crop(width: int, height: int, config: ViewConfig, generator: torch.Generator) -> Crop:
    """Return one crop of an image."""
    drawn = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    area = width * height * (config.area[0] + (config.area[1] - config.area[0]) * drawn[0])
    narrow, wide = map(math.log, config.aspect)
    aspect = math.exp(narrow + (wide - narrow) * drawn[1])
    w = max(1, min(width, round(math.sqrt(area * aspect))))
    h = max(1, min(height, round(math.sqrt(area / aspect))))
    x, y = int(drawn[2] * (width - w + 1)), int(drawn[3] * (height - h + 1))
    return Crop(x, y, x + w, y + h, drawn[4] < config.mirror)


def _draw_colors(number: int, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """Return factors of brightness, contrast and saturation, turn of the hue, blur's deviation in pixels, solarize."""
    # As many numbers for every view: what one of them decides must not move the others.
    change, *drawn, gray, blur, deviation, solarize = torch.rand(9, generator=generator).tolist()
    limits = (config.brightness, config.contrast, config.saturation, config.hue)
    jittered = change < config.jitter
    moved = [limit * (2 * value - 1) * jittered for limit, value in zip(limits, drawn, strict=True)]
    height = config.size[1]
    least, most = (sigma * height / _BLUR_HEIGHT for sigma in _BLUR_PX)
    blurred = blur < config.blur[number] and height >= _LEAST_HEIGHT
    return torch.tensor(
        [
            1 + moved[0],
            1 + moved[1],
            0.0 if gray < config.gray else 1 + moved[2],
            moved[3],
            least + (most - least) * deviation if blurred else 0.0,
            float(solarize < config.solarize[number]),
        ]
    )


def _recolored(images: Tensor, drawn: Tensor) -> Tensor:
    """Return images float32 within 0 … 1 [B, 3, h, w] in the colors that were drawn, [B, 6] on the CPU."""
    device = images.device
    brightness, contrast = drawn[:, :2].to(device)[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp(0, 1)
    luma = torch.einsum("c,bchw->bhw", _YIQ[0].to(device), images).mean((1, 2))[:, None, None, None]
    images = ((images - luma) * contrast + luma).clamp(0, 1)
    images = torch.einsum("bdc,bchw->bdhw", _color_matrices(drawn[:, 2], drawn[:, 3]).to(device), images).clamp(0, 1)
    # Numbers that the host knows: for a mask on the device it would wait until it had counted it.
    if blurred := [number for number, deviation in enumerate(drawn[:, 4].tolist()) if deviation > 0]:
        some = torch.tensor(blurred).to(device)
        images[some] = _blurred(images[some], drawn[blurred, 4].to(device))
    inverted = (drawn[:, 5] > 0).to(device)[:, None, None, None] & (images >= 0.5)
    return torch.where(inverted, 1 - images, images)


def _color_matrices(saturation: Tensor, turns: Tensor) -> Tensor:
    """Return [B, 3, 3] on colors: in YIQ, chroma is scaled and turned, which leaves the luma as it is."""
    across = saturation * torch.cos(2 * math.pi * turns)
    along = saturation * torch.sin(2 * math.pi * turns)
    turned = torch.zeros(len(turns), 3, 3)
    turned[:, 0, 0] = 1
    turned[:, 1, 1] = turned[:, 2, 2] = across
    turned[:, 1, 2], turned[:, 2, 1] = -along, along
    return _RGB @ turned @ _YIQ


def _blurred(images: Tensor, deviations: Tensor) -> Tensor:
    """Return images [B, 3, h, w], each convolved with a Gaussian of its own deviation [B] in pixels."""
    count, channels, height, width = images.shape
    radius = math.ceil(3 * _BLUR_PX[1] * height / _BLUR_HEIGHT)
    steps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernels = torch.exp(-0.5 * (steps / deviations[:, None]).square())
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = images.reshape(1, count * channels, height, width)
    for kernel, padding in (
        (kernels[:, None, :, None], (0, 0, radius, radius)),
        (kernels[:, None, None, :], (radius, radius, 0, 0)),
    ):
        flat = functional.conv2d(functional.pad(flat, padding, mode="replicate"), kernel, groups=count * channels)
    return flat.reshape(images.shape)
