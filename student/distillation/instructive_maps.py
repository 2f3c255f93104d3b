"""The instructive maps of LGD: feature maps that are made of an image's labels, and of what the student sees there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from student.config import StudentConfig, StudentError
from student.labels import Labels

# Heads of the attention, as in the paper's references.
_HEADS = 8
# Neurons of the label encoder. With the official code's, 64, 128, 1024 and 512, 256, it alone would have more weights
# than the default student.
_WIDTHS, _HIDDEN = (32, 64, 128), (64, 64)
# So many times as large as they are used are the encoder's parameters kept.
_KEPT = 4.0


class InstructiveMaps(nn.Module):
    """Label encoder, appearance encoder, relation adapter and knowledge mapper (LGD, sections 3.1 to 3.3).

    All levels share the weights. Where the paper and its code (github.com/megvii-research/LGD) differ it is the code:
    appearance is a mean over a box's cells, not a sum, and masks are made for each level. No image depends on others.
    Under autocast the convolutions are computed in its type and all else, that has boxes in it or few numbers, is not.

    context: an object as large as the image, of no class, takes part, and is rendered all over the maps
    """

    def __init__(self, student: StudentConfig, *, context: bool) -> None:
        super().__init__()
        width = student.width
        if width % _HEADS:
            raise StudentError(f"lgd: expected a student whose width {_HEADS} heads share, got: {width}")
        self.encoder = LabelEncoder(4 + student.classes - 1, width)
        self.appearance = nn.Sequential(_convolution(width), _norm(width), nn.ReLU())
        self.relation = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.project = nn.Linear(width, width)
        self.context = nn.Linear(width, width) if context else None
        self.spread = _convolution(width)
        steps = [nn.Sequential(nn.ReLU(), _convolution(width), _norm(width)) for _ in range(3)]
        self.refine = nn.Sequential(*steps)
        self._classes = student.classes

    def forward(self, pyramid: Sequence[Tensor], labels: Labels, image_size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return a map float32 [B, C, h, w] for each level [B, C, h, w] of the student's pyramid.

        labels: of the B images of (height, width) pixels, each with an object
        """
        boxes, classes, valid = labels.boxes, labels.classes, labels.valid
        if self.context is not None:
            whole = boxes.new_zeros(len(boxes), 1, 4)
            whole[..., 2], whole[..., 3] = image_size[1], image_size[0]
            boxes = torch.cat([boxes, whole], 1)
            classes = torch.cat([classes, classes.new_zeros(len(boxes), 1)], 1)
            valid = torch.cat([valid, valid.new_ones(len(boxes), 1)], 1)
        appearances = [self.appearance(level).float() for level in pyramid]
        with torch.autocast(boxes.device.type, enabled=False):
            embeddings = self.encoder(descriptors(boxes, classes, image_size, self._classes), valid)
            masks = [box_masks(boxes, valid, (level.shape[-2], level.shape[-1]), image_size) for level in pyramid]
            seen = [masked_mean(appearance, mask) for appearance, mask in zip(appearances, masks, strict=True)]
            # An object asks the same labels whatever its level is.
            related, _ = self.relation(
                torch.cat(seen, 1), embeddings, embeddings, key_padding_mask=~valid, need_weights=False
            )
            levels = related.chunk(len(masks), 1)
            objects = slice(labels.boxes.shape[1])
            filled = [
                filled_map(self.project(of_level[:, objects]), mask[:, objects])
                for of_level, mask in zip(levels, masks, strict=True)
            ]
            spread_over = [
                0 if self.context is None else self.context(level[:, -1])[..., None, None] for level in levels
            ]
        maps = zip(filled, spread_over, strict=True)
        return tuple(self.refine(self.spread(of_objects) + context).float() for of_objects, context in maps)


class LabelEncoder(nn.Module):
    """PointNet (Qi et al. 2017) over the objects of an image, its norms over layers and without parameters.

    As in the official code the transforms are made of each object by itself: the maximum over points that PointNet
    takes there is over one.

    widths, hidden: neurons of its perceptrons, before and after the maximum over objects
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: tuple[int, int, int] = _WIDTHS,
        hidden: tuple[int, int] = _HIDDEN,
    ) -> None:
        super().__init__()
        local = widths[0]
        self.of_descriptor = Transform(inputs, widths, hidden)
        self.local = _perceptron(inputs, local)
        self.of_features = Transform(local, widths, hidden)
        self.shared = _perceptron(local, *widths[1:])
        self.joint = _perceptron(widths[-1] + local, hidden[-1], outputs)

    def forward(self, descriptors: Tensor, valid: Tensor) -> Tensor:
        """Return label embeddings [B, M, outputs] of descriptors [B, M, inputs].

        valid: bool [B, M], where there is an object; what is returned elsewhere means nothing
        """
        local = self.of_features(self.local(self.of_descriptor(descriptors)))
        # Behind a ReLU nothing is below 0.
        everything = torch.where(valid[..., None], self.shared(local), 0.0).amax(1, keepdim=True)
        embeddings: Tensor = self.joint(torch.cat([everything.expand(-1, local.shape[1], -1), local], -1))
        return embeddings


class Transform(nn.Module):
    """A spatial transformer: multiplies a vector by a matrix that is computed from it."""

    def __init__(self, size: int, widths: tuple[int, int, int], hidden: tuple[int, int]) -> None:
        super().__init__()
        self.hidden = _perceptron(size, *widths, *hidden)
        self.matrix = SlowLinear(hidden[-1], size * size)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return [..., size] for vectors [..., size]."""
        matrices = self.matrix(self.hidden(vectors)).unflatten(-1, (vectors.shape[-1], -1))
        return (vectors[..., None, :] @ matrices)[..., 0, :]


class SlowLinear(nn.Linear):
    """A linear layer whose parameters are kept several times as large as they are used.

    AdamW's steps are as long as its rate, whatever the gradient: so these change by a fraction of it (equalized
    learning rate, Karras et al. 2018). At the student's own rate, three times what suits it, the encoder, some ten
    layers deep, soon no longer tells classes apart.
    """

    def reset_parameters(self) -> None:
        """Start as torch does."""
        super().reset_parameters()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(_KEPT)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return [..., outputs] of [..., inputs]."""
        return linear(input, self.weight / _KEPT, self.bias / _KEPT)


class NormedReLU(nn.Module):
    """A layer norm without parameters, and a ReLU."""

    def forward(self, features: Tensor) -> Tensor:
        """Return [..., N] of the same shape."""
        return layer_norm(features, features.shape[-1:]).relu()


def descriptors(boxes: Tensor, classes: Tensor, image_size: tuple[int, int], count: int) -> Tensor:
    """Return descriptors [B, M, 4 + count - 1] of boxes [B, M, 4] and classes [B, M], numbers within -1 … 1.

    A box's corners as shares of the image, and which of the classes but the background it is of.
    """
    height, width = image_size
    x = boxes[..., 0::2].clamp(0, width - 1) / width
    y = boxes[..., 1::2].clamp(0, height - 1) / height
    one_hot = classes[..., None] == torch.arange(1, count, device=classes.device)
    return 2 * torch.cat([torch.stack([x, y], -1).flatten(-2), one_hot.float()], -1) - 1


def box_masks(boxes: Tensor, valid: Tensor, size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Return float32 [B, M, h, w], 1 in the cells of a level of `size` (h, w) that are in each of boxes [B, M, 4].

    A cell of column j stands at j strides, where the convolutions that made the pyramid have its center; edges are
    inside. A small box has no cell on a coarse level. Where an object is not valid [B, M] all is 0.
    """
    inside = []
    for axis in (1, 0):
        cells = torch.arange(size[axis], device=boxes.device)
        scaled = boxes[..., 1 - axis :: 2] * (size[axis] / image_size[axis])
        inside.append((scaled[..., :1] <= cells) & (cells <= scaled[..., 1:]))
    columns, rows = inside
    return (rows[..., :, None] & columns[..., None, :] & valid[..., None, None]).float()


def masked_mean(features: Tensor, masks: Tensor) -> Tensor:
    """Return [B, M, C], the mean of features [B, C, h, w] over the cells of each of masks [B, M, h, w]; of none 0."""
    return torch.einsum("bmhw,bchw->bmc", masks, features) / masks.sum((2, 3)).clamp(min=1)[..., None]


def filled_map(embeddings: Tensor, masks: Tensor) -> Tensor:
    """Return [B, C, h, w]: in each cell the sum of the embeddings [B, M, C] of the masks [B, M, h, w] that it is in."""
    return torch.einsum("bmc,bmhw->bchw", embeddings, masks)


def _perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [SlowLinear(inputs, outputs), NormedReLU()]
    return nn.Sequential(*layers)


def _convolution(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, padding=1)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, width, affine=False)
