"""A vision transformer (Dosovitskiy et al. 2021), as timm has it, with its attention where that is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from student.config import StudentError

_HEAD = 64
# Of published classifiers; features have no use for it.
_CLASSIFIER = ("head.", "fc_norm.", "head_dist.")
# What FB's training wraps its networks in, and what else its checkpoints hold.
_WRAPPERS = ("module.", "backbone.")
_OF_DINO = "head."


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """The size of a vision transformer; by default half as deep as ViT-Ti."""

    # Numbers of a token.
    dimensions: int = 192
    # Blocks of attention and two layers.
    blocks: int = 6
    # Heads of each attention.
    heads: int = 3
    # Pixels to a side of a patch.
    patch: int = 16
    # Width and height of the images that its positions are learned for; for others they are interpolated.
    size: tuple[int, int] = (128, 96)

    def to_json(self) -> str:
        """Return it as a checkpoint has it."""
        return json.dumps({"vit": asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> VitConfig | None:
        """Return the configuration that `to_json` wrote; None where the text is of another network."""
        known = json.loads(text).get("vit")
        return None if known is None else cls(**{**known, "size": tuple(known["size"])})


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """What a transformer makes of B images.

    whole: [B, D], the class token; patches: [B, D, h, w]
    """

    whole: Tensor
    patches: Tensor


class Vit(nn.Module):
    """timm's network, with images of any size that its patches divide, not squares alone."""

    network: Any

    def __init__(self, config: VitConfig) -> None:
        """Build it with random weights; raises StudentError where timm is not installed or sizes do not fit."""
        super().__init__()
        try:
            from timm.models.vision_transformer import VisionTransformer
        except ModuleNotFoundError as error:
            raise StudentError("a vision transformer needs the package timm: pip install -e '.[timm]'") from error
        if config.dimensions % config.heads:
            raise StudentError(f"{config.dimensions} dimensions cannot be cut among {config.heads} heads")
        if any(side % config.patch for side in config.size):
            raise StudentError(f"images of {config.size[0]} x {config.size[1]} have no whole patches of {config.patch}")
        self.settings = config
        self.network = VisionTransformer(
            img_size=config.size[::-1],
            patch_size=config.patch,
            embed_dim=config.dimensions,
            depth=config.blocks,
            num_heads=config.heads,
            num_classes=0,
            global_pool="",
            dynamic_img_size=True,
        )

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return self.settings.dimensions

    def forward(self, images: Tensor) -> Tokens:
        """Return the tokens of images float32 [B, 3, H, W], after the last norm."""
        tokens = self.network(images)
        grid = images.shape[2] // self.settings.patch, images.shape[3] // self.settings.patch
        return Tokens(tokens[:, 0], tokens[:, 1:].transpose(1, 2).unflatten(2, grid))

    def attention(self, images: Tensor) -> Tensor:
        """Return how much each head's class token looks at each patch, in the last block: float32 [B, heads, h, w].

        A head's sum is 1 less what the token gives itself. Fused attention returns none: it is computed anew.
        """
        network, last = self.network, self.network.blocks[-1]
        tokens = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(images))))
        for block in network.blocks[:-1]:
            tokens = block(tokens)
        inner = last.attn
        packed = inner.qkv(last.norm1(tokens)).unflatten(2, (3, inner.num_heads, inner.head_dim))
        query, key, _ = packed.permute(2, 0, 3, 1, 4)
        query, key = inner.q_norm(query), inner.k_norm(key)
        looks = (query[:, :, :1] @ key.transpose(2, 3) * inner.scale).float().softmax(3)
        grid = images.shape[2] // self.settings.patch, images.shape[3] // self.settings.patch
        return looks[:, :, 0, 1:].unflatten(2, grid)


def vit_of(state: Mapping[str, Tensor], source: str, heads: int | None = None) -> Vit:
    """Return the transformer that a published state dict is of: DINO's or timm's, with a class token.

    Its backbone alone, or the teacher of a checkpoint of DINO's, with `module.` and `backbone.` before the names.
    Dimensions, depth and patches follow from the shapes; heads, of 64 numbers each unless given, do not. A
    classifier is left out. Raises StudentError where a name or a shape is not the network's: nothing stays random.
    """
    plain = {_unwrapped(name): value for name, value in state.items()}
    kept = {name: value for name, value in plain.items() if not name.startswith((*_CLASSIFIER, _OF_DINO))}
    try:
        positions, kernel = kept["pos_embed"], kept["patch_embed.proj.weight"]
    except KeyError as error:
        raise StudentError(f"{source}: not a vision transformer with a class token: no {error.args[0]}") from error
    side = math.isqrt(positions.shape[1] - 1)
    dimensions, patch = kernel.shape[0], kernel.shape[-1]
    if side * side != positions.shape[1] - 1:
        raise StudentError(f"{source}: {positions.shape[1]} positions are no square and one of a class token")
    if heads is None and dimensions % _HEAD:
        raise StudentError(f"{source}: {dimensions} dimensions are no heads of {_HEAD}; give their number")
    blocks = {name.split(".")[1] for name in kept if name.startswith("blocks.")}
    config = VitConfig(
        dimensions=dimensions,
        blocks=len(blocks),
        heads=dimensions // _HEAD if heads is None else heads,
        patch=patch,
        size=(side * patch, side * patch),
    )
    vit = Vit(config)
    own = {name: value.shape for name, value in vit.network.state_dict().items()}
    given = {name: value.shape for name, value in kept.items()}
    if wrong := sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name)):
        some = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise StudentError(f"{source}: not the weights of a plain vision transformer: {some}")
    vit.network.load_state_dict(kept)
    return vit


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def load_vit(content: Mapping[str, Tensor], config: VitConfig, source: str) -> Vit:
    """Return the transformer of a pre-training run; raises StudentError where its weights are others."""
    vit = Vit(config)
    try:
        vit.load_state_dict(dict(content))
    except RuntimeError as error:
        raise StudentError(f"{source}: the weights do not fit the configuration beside them: {error}") from error
    return vit


def masses(maps: Tensor) -> Tensor:
    """Return attention [..., h, w] as shares of what each head gives all patches together."""
    return maps / maps.sum((-2, -1), keepdim=True).clamp(min=1e-12)


def largest_cells(maps: Tensor, mass: float = 0.6) -> Tensor:
    """Return bool [..., h, w]: the fewest cells that together hold so large a share of the attention (DINO's 60 %)."""
    shares = masses(maps).flatten(-2)
    values, order = shares.sort(dim=-1, descending=True)
    # Those before which the share is not reached yet.
    kept = values.cumsum(-1) - values < mass
    return torch.zeros_like(kept).scatter(-1, order, kept).unflatten(-1, maps.shape[-2:])
