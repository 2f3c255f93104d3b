"""Two heads of a transformer that labels teach to look at objects and at all else (the paper, section 3.3).

With a1, a2 the attention of the class token to each of N patches in two heads, and M the objects' share of each patch,
the paper's loss is (1/N) ||M a1 - (1 - M) a2||^2, by patches. Where M is 0 or 1 the two terms never meet on a patch,
so it is (1/N) sum [M a1^2 + (1 - M) a2^2]: least, namely 0, where the first head looks at everything but the objects
and the second at nothing but them. The order that the paper wishes for costs more than equal attention does. It is 0
as well where both heads give all to the class token itself; and of the size 1/N^2, which an optimizer hardly feels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# `literal`: as the paper writes it; `rescaled`: the same of attention shared out over the patches, times N;
# `corrected`: each head's attention on what it is to look at, as a likelihood.
HeadLoss = Literal["literal", "rescaled", "corrected"]
_TINY = 1e-8


def head_loss(maps: Tensor, objects: Tensor, form: HeadLoss) -> Tensor:
    """Return the loss of the first two heads' attention float32 [B, heads, N], the mean over images.

    objects: float32 [B, N] within 0 … 1, the share of each patch that objects cover
    """
    first, second = maps[:, 0], maps[:, 1]
    if form == "literal":
        return literal_loss(first, second, objects).mean()
    shares = [each / each.sum(1, keepdim=True).clamp(min=_TINY) for each in (first, second)]
    if form == "rescaled":
        count = maps.shape[2]
        return literal_loss(count * shares[0], count * shares[1], objects).mean()
    on = [(shares[0] * objects).sum(1), (shares[1] * (1 - objects)).sum(1)]
    return -torch.stack(on).clamp(min=_TINY).log().sum(0).mean()


def literal_loss(first: Tensor, second: Tensor, objects: Tensor) -> Tensor:
    """Return (1/N) ||M a1 - (1 - M) a2||^2 of each image [B], of attention and shares [B, N]."""
    return (objects * first - (1 - objects) * second).square().mean(1)


def best_order(masks: Tensor, objects: Tensor) -> Tensor:
    """Return the mean IoU of two heads' masks with objects and all else, under the better order of the heads: [B].

    masks, objects: bool [B, 2, N] and [B, N]
    """
    wanted = torch.stack([objects, ~objects], 1)

    def iou(one: Tensor, other: Tensor) -> Tensor:
        return (one & other).sum(2) / (one | other).sum(2).clamp(min=1)

    return torch.maximum(iou(masks, wanted).mean(1), iou(masks.flip(1), wanted).mean(1))
