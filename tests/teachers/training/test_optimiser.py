"""Muon for hidden layers, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from teachers.training.optimiser import Optimiser

RATE, DECAY = 1e-2, 0.1


def layers(seed: int = 0) -> nn.Sequential:
    """Return a convolution, a norm and a linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 16, 3))


def optimiser_of(network: nn.Sequential, muon: float = 2.0, decay: float = DECAY) -> Optimiser:
    hidden = [network.get_parameter("0.weight")]
    others = [p for p in network.parameters() if p is not hidden[0]]
    return Optimiser(hidden, others, muon=muon, weight_decay=decay)


def descend(network: nn.Sequential, step: Callable[[], None], steps: int, first: int = 0) -> None:
    """Take steps, each on pictures of its own."""
    for number in range(first, first + steps):
        pictures = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(number))
        for parameter in network.parameters():
            parameter.grad = None
        network(pictures).square().mean().backward()
        step()


def weights(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def test_every_direction_of_a_hidden_layers_update_is_about_equally_long() -> None:
    network = layers()
    weight = network.get_parameter("0.weight")
    before = weight.detach().clone()
    optimiser = optimiser_of(network, muon=2.0, decay=0.0)
    descend(network, lambda: optimiser.step(RATE), steps=1)
    update = (weight.detach() - before).flatten(1)
    lengths = torch.linalg.svdvals(update)
    # 0.2 x the root of the longer side makes the update's entries as large as AdamW's.
    expected = 0.2 * update.shape[1] ** 0.5 * 2.0 * RATE
    assert bool(((lengths / expected > 0.5) & (lengths / expected < 1.5)).all())


def test_without_muon_it_is_adamw() -> None:
    one, other = layers(), layers()
    optimiser = optimiser_of(one, muon=0.0)
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in other.parameters() if p.ndim > 1], "weight_decay": DECAY},
            {"params": [p for p in other.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    descend(one, lambda: optimiser.step(RATE), steps=3)
    descend(other, lambda: reference.step() and None, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_layers_decay_and_norms_and_biases_do_not() -> None:
    network = layers()
    before = weights(network)
    optimiser = optimiser_of(network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step(RATE)
    hidden, bias, scale, shift, linear, linear_bias = weights(network)
    torch.testing.assert_close(hidden, before[0] * (1 - 2.0 * RATE * DECAY))
    torch.testing.assert_close(linear, before[4] * (1 - RATE * DECAY))
    for found, expected in ((bias, before[1]), (scale, before[2]), (shift, before[3]), (linear_bias, before[5])):
        assert torch.equal(found, expected)


def test_it_goes_on_from_its_state_as_if_nothing_had_happened() -> None:
    whole, cut = layers(), layers()
    optimiser = optimiser_of(whole)
    descend(whole, lambda: optimiser.step(RATE), steps=4)
    first = optimiser_of(cut)
    descend(cut, lambda: first.step(RATE), steps=2)
    again = optimiser_of(cut)
    again.load_state_dict(first.state_dict())
    descend(cut, lambda: again.step(RATE), steps=2, first=2)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(cut), strict=True))


def test_how_weights_lie_in_memory_does_not_matter() -> None:
    one, other = layers(), layers().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert not other.get_parameter("0.weight").is_contiguous()
    for network in (one, other):
        optimiser = optimiser_of(network)
        descend(network, lambda optimiser=optimiser: optimiser.step(RATE), steps=2)  # type: ignore[misc]
    for a, b in zip(weights(one), weights(other), strict=True):
        # Muon turns matrices in bfloat16.
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


def test_what_is_kept_for_later_does_not_depend_on_how_weights_lie_in_memory() -> None:
    one, other = layers(), layers().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first, second = optimiser_of(one), optimiser_of(other)
    descend(one, lambda: first.step(RATE), steps=2)
    before = weights(one)
    other.load_state_dict(one.state_dict())
    second.load_state_dict(first.state_dict())
    kept, again = first.state_dict()["muon"]["state"], second.state_dict()["muon"]["state"]
    assert torch.equal(kept[0]["momentum_buffer"], again[0]["momentum_buffer"])
    # The momentum alone turns them: what was learned is not new to either.
    for network, optimiser in ((one, first), (other, second)):
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step(RATE)
    assert not torch.equal(weights(one)[0], before[0])
    for a, b in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


def test_cleared_gradients_are_gone() -> None:
    network = layers()
    optimiser = optimiser_of(network)
    descend(network, lambda: None, steps=1)
    optimiser.clear()
    assert all(parameter.grad is None for parameter in network.parameters())
