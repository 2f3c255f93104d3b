"""The transformer, its attention, and published weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from student.config import StudentError
from student.pretraining.vit import Vit, VitConfig, largest_cells, load_vit, masses, vit_of

CONFIG = VitConfig(dimensions=32, blocks=2, heads=2, patch=8, size=(48, 32))


def vit(config: VitConfig = CONFIG, seed: int = 0) -> Vit:
    torch.manual_seed(seed)
    return Vit(config).eval()


def images(count: int = 2, width: int = 48, height: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def published() -> dict[str, Tensor]:
    """Return a state dict with the names and shapes of DINO's and timm's, of a tiny network."""
    square = vit(VitConfig(dimensions=128, blocks=2, heads=2, patch=16, size=(64, 64)))
    return copy.deepcopy(square.network.state_dict())


def test_tokens_are_timms_and_patches_lie_as_in_the_image() -> None:
    network, batch = vit(), images()
    found, tokens = network(batch), network.network.forward_features(batch)
    assert found.whole.shape == (2, 32)
    assert found.patches.shape == (2, 32, 4, 6)
    torch.testing.assert_close(found.patches[1, :, 2, 3], tokens[1, 1 + 2 * 6 + 3])
    torch.testing.assert_close(found.whole, tokens[:, 0])


def test_attention_is_the_softmax_of_the_class_tokens_query_by_loops() -> None:
    network, batch = vit(), images(1)
    with torch.no_grad():
        found = network.attention(batch)
        last = network.network.blocks[-1]
        inputs: list[Tensor] = []
        hook = last.norm1.register_forward_hook(lambda _module, _inputs, output: inputs.append(output))
        network(batch)
        hook.remove()
        weight, bias = last.attn.qkv.weight, last.attn.qkv.bias
        for head in range(2):
            rows = slice(16 * head, 16 * head + 16)
            query = weight[:32][rows] @ inputs[0][0, 0] + bias[:32][rows]
            keys = [weight[32:64][rows] @ token + bias[32:64][rows] for token in inputs[0][0]]
            products = [float(query @ key) / math.sqrt(16) for key in keys]
            total = sum(math.exp(p) for p in products)
            for place in range(24):
                expected = math.exp(products[1 + place]) / total
                assert float(found[0, head, place // 6, place % 6]) == pytest.approx(expected, rel=1e-4)
    # The class token keeps some for itself.
    assert (found.sum((2, 3)) < 1).all()


def test_attention_is_what_timms_own_unfused_one_multiplies_values_by() -> None:
    network, batch = vit(), images(1)
    inner = network.network.blocks[-1].attn
    inner.fused_attn = False
    seen: list[Tensor] = []
    hook = inner.attn_drop.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        network(batch)
        hook.remove()
        torch.testing.assert_close(network.attention(batch).flatten(2), seen[0][:, :, 0, 1:])


def test_moving_patches_with_their_positions_moves_the_maps() -> None:
    network, batch = vit(), images(1)
    turned = batch.unflatten(3, (6, 8)).flip(3).flatten(3)
    other = copy.deepcopy(network)
    with torch.no_grad():
        positions = other.network.pos_embed
        positions[:, 1:] = positions[:, 1:].unflatten(1, (4, 6)).flip(2).flatten(1, 2)
        torch.testing.assert_close(other.attention(turned), network.attention(batch).flip(3), rtol=1e-4, atol=1e-6)


def test_images_of_other_sizes_have_interpolated_positions() -> None:
    network = vit()
    assert network(images(1, 64, 48)).patches.shape == (1, 32, 6, 8)
    assert network.attention(images(1, 96, 64)).shape == (1, 2, 8, 12)
    # Twice as large positions that vary evenly still do, in the middle.
    with torch.no_grad():
        ramp = torch.arange(6.0).expand(4, 6).reshape(1, 24, 1)
        network.network.pos_embed[:, 1:] = ramp
        tokens = network.network._pos_embed(torch.zeros(1, 8, 12, 32))[0, 1:, 0].reshape(8, 12)
    torch.testing.assert_close(tokens[3, 3:9], torch.arange(3.0, 9) / 2 - 0.25, rtol=0, atol=0.05)


@pytest.mark.parametrize("wrapped", ["", "module.backbone.", "backbone."])
def test_published_weights_are_taken_with_or_without_what_wraps_them(wrapped: str) -> None:
    state = published()
    given = {f"{wrapped}{name}": value for name, value in state.items()} | {
        f"{wrapped[:-9]}head.mlp.0.weight": state["cls_token"]
    }
    loaded = vit_of(given, "file")
    assert loaded.settings == VitConfig(dimensions=128, blocks=2, heads=2, patch=16, size=(64, 64))
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_real_model_of_timms_is_taken_with_its_classifier_left_out() -> None:
    import timm

    torch.manual_seed(0)
    own: Any = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    loaded = vit_of(own.state_dict(), "file").eval()
    batch = images(1, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch).whole, own.forward_features(batch)[:, 0])
    assert loaded.settings.heads == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("blocks.1.mlp.fc2.bias"),
            "not the weights of a plain vision transformer: blocks.1.mlp",
        ),
        (lambda state: state.update({"blocks.0.ls1.gamma": torch.ones(128)}), "blocks.0.ls1.gamma"),
        (lambda state: state.update(pos_embed=torch.zeros(1, 16, 128)), "16 positions are no square"),
        (lambda state: state.pop("pos_embed"), "no pos_embed"),
        (lambda state: state.update({"encoder.norm.bias": state.pop("norm.bias")}), "encoder.norm.bias, norm.bias"),
    ],
)
def test_other_weights_are_refused(change: object, message: str) -> None:
    state = published()
    change(state)  # type: ignore[operator]
    with pytest.raises(StudentError, match=message):
        vit_of(state, "file")


def test_heads_that_the_shapes_do_not_tell_are_given() -> None:
    state = vit(VitConfig(dimensions=32, blocks=1, heads=4, patch=8, size=(32, 32))).network.state_dict()
    with pytest.raises(StudentError, match="give their number"):
        vit_of(state, "file")
    assert vit_of(state, "file", heads=4).settings.heads == 4


def test_a_configuration_is_read_again_and_a_students_is_none() -> None:
    assert VitConfig.from_json(CONFIG.to_json()) == CONFIG
    assert VitConfig.from_json('{"width": 3}') is None
    own = vit()
    again = load_vit(own.state_dict(), CONFIG, "run")
    torch.testing.assert_close(again.eval()(images()).whole, own(images()).whole)
    with pytest.raises(StudentError, match="do not fit the configuration"):
        load_vit({}, CONFIG, "run")


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(StudentError, match="no whole patches of 16"):
        Vit(VitConfig(size=(100, 96)))
    with pytest.raises(StudentError, match="cannot be cut among 5 heads"):
        Vit(VitConfig(heads=5))


def test_the_largest_cells_are_the_fewest_that_hold_the_mass() -> None:
    maps = torch.tensor([[0.05, 0.3], [0.1, 0.05]])
    # Of .5 in all, .3 is 60 %.
    assert largest_cells(maps, 0.59).tolist() == [[False, True], [False, False]]
    assert largest_cells(maps, 0.61).tolist() == [[False, True], [True, False]]
    assert float(masses(maps).sum()) == pytest.approx(1)
