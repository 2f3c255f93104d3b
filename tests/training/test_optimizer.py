"""Muon for hidden weight matrices, AdamW for the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from training import optimizer as optimizer_module
from training.optimizer import MuonAdamW, orthogonalize, orthogonalize_all

LR, DECAY = 1e-2, 0.1


def layers(seed: int = 0) -> nn.Sequential:
    """Return a convolution, a norm and a linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 16, 3))


def optimizer_of(
    network: nn.Sequential, muon_lr_factor: float = 2.0, decay: float = DECAY, bfloat16: bool = False
) -> MuonAdamW:
    hidden = [network.get_parameter("0.weight")]
    others = [p for p in network.parameters() if p is not hidden[0]]
    optimizer = MuonAdamW(hidden, others, muon_lr_factor=muon_lr_factor, weight_decay=decay, bfloat16=bfloat16)
    optimizer.set_lr(LR)
    return optimizer


def descend(network: nn.Sequential, step: Callable[[], object], steps: int, first: int = 0) -> None:
    """Take steps, each on images of its own."""
    for number in range(first, first + steps):
        images = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(number))
        for parameter in network.parameters():
            parameter.grad = None
        network(images).square().mean().backward()
        step()


def weights(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


@pytest.mark.parametrize(("bfloat16", "tolerance"), [(True, 1e-6), (False, 2e-3)])
def test_hidden_matrices_move_as_under_torchs_muon(bfloat16: bool, tolerance: float) -> None:
    """torch's iterates in bfloat16 always; float32 agrees with it to bfloat16's rounding."""
    torch.manual_seed(0)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 5)]
    mine = [nn.Parameter(torch.randn(*shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    optimizer = MuonAdamW(mine, [], muon_lr_factor=2.0, weight_decay=DECAY, bfloat16=bfloat16)
    optimizer.set_lr(LR)
    reference = torch.optim.Muon(theirs, lr=2.0 * LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for one, other in zip(mine, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimizer.step()
        reference.step()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)
        torch.testing.assert_close(
            optimizer.state[one]["momentum_buffer"], reference.state[other]["momentum_buffer"], atol=1e-6, rtol=1e-6
        )


def test_a_kernel_is_optimized_as_the_matrix_of_its_outputs() -> None:
    kernel = nn.Parameter(torch.randn(6, 2, 3, 3))
    matrix = nn.Parameter(kernel.detach().reshape(6, 18).clone())
    gradient = torch.randn(6, 2, 3, 3)
    for weight in (kernel, matrix):
        weight.grad = gradient.reshape(weight.shape).clone()
        optimizer = MuonAdamW([weight], [], muon_lr_factor=1.0, weight_decay=0.0, bfloat16=False)
        optimizer.set_lr(LR)
        optimizer.step()
    assert torch.equal(kernel.detach().reshape(6, 18), matrix.detach())


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 12), more=st.integers(0, 20), count=st.integers(1, 4), seed=st.integers(0, 1000))
def test_orthogonalized_matrices_keep_their_singular_vectors(rows: int, more: int, count: int, seed: int) -> None:
    matrices = torch.randn(count, rows, rows + more, generator=torch.Generator().manual_seed(seed))
    found = orthogonalize(matrices)
    for matrix, result in zip(matrices, found, strict=True):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        turned = left.mT @ result.double() @ right.mT
        diagonal = turned.diagonal()
        # Away from the diagonal nothing, whatever the scale: the singular vectors are the input's.
        assert float((turned - diagonal.diag()).abs().max()) < 2e-3
        # Five iterations lift values of at least some per cent of the norm to about 1.
        large = values / values.norm() > 0.05
        assert bool(((diagonal[large] > 0.5) & (diagonal[large] < 1.3)).all())


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 24),
    wider=st.integers(2, 9),
    rank=st.integers(1, 24),
    decades=st.floats(0.0, 4.0),
    seed=st.integers(0, 1000),
)
def test_wide_matrices_of_any_rank_and_condition_are_orthogonalized_as_in_float64(
    rows: int, wider: int, rank: int, decades: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(0, -decades, rank := min(rank, rows), dtype=torch.float64)
    left, right = (torch.randn(n, rank, generator=random, dtype=torch.float64) for n in (rows, wider * rows))
    matrix = torch.linalg.qr(left)[0] @ sizes.diag() @ torch.linalg.qr(right)[0].mT
    x = matrix / matrix.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.mT @ x + 2.0315 * x @ x.mT @ x @ x.mT @ x
    torch.testing.assert_close(orthogonalize(matrix.float()[None])[0], x.float(), atol=2e-3, rtol=0)


def test_matrices_of_one_shape_do_not_influence_each_other() -> None:
    matrices = torch.randn(3, 4, 9)
    together = orthogonalize(matrices)
    for alone, found in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalize(alone[None])[0], found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_matrices_of_many_shapes_are_orthogonalized_as_each_alone(padded: bool) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = [(3, 7), (9, 4), (70, 5), (4, 4), (1, 12), (66, 1030), (3, 7), (12, 1)]
    matrices = [torch.randn(shape, generator=random) for shape in shapes]
    found = orthogonalize_all(matrices, torch.float32, padded=padded)
    for matrix, result in zip(matrices, found, strict=True):
        rows, columns = matrix.shape
        alone = orthogonalize(matrix.T[None])[0].T if rows > columns else orthogonalize(matrix[None])[0]
        torch.testing.assert_close(result, alone, atol=1e-5, rtol=1e-5)


def test_the_matrices_of_a_student_are_few_stacks_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks = list[torch.Size]()

    def noted(matrices: Tensor) -> Tensor:
        stacks.append(matrices.shape)
        return matrices

    monkeypatch.setattr(optimizer_module, "orthogonalize", noted)
    shapes = [(32, 48), (32, 52), (48, 64), (72, 32), (32, 216), (48, 432), (64, 576), (128, 160), (128, 1152)]
    orthogonalize_all([torch.zeros(shape) for shape in shapes], torch.float32, padded=True)
    assert stacks == [(7, 64, 576), (1, 128, 160), (1, 128, 1152)]


def test_a_gradient_of_zeros_moves_nothing() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5))


def test_every_direction_of_a_hidden_layers_update_is_about_equally_long() -> None:
    network = layers()
    weight = network.get_parameter("0.weight")
    before = weight.detach().clone()
    optimizer = optimizer_of(network, decay=0.0)
    descend(network, optimizer.step, steps=1)
    update = (weight.detach() - before).flatten(1)
    lengths = torch.linalg.svdvals(update)
    # 0.2 x the root of the longer side makes the update's entries as large as AdamW's.
    expected = 0.2 * update.shape[1] ** 0.5 * 2.0 * LR
    assert bool(((lengths / expected > 0.5) & (lengths / expected < 1.5)).all())


def test_without_muon_it_is_torchs_adamw_bit_for_bit() -> None:
    one, other = layers(), layers()
    optimizer = optimizer_of(one, muon_lr_factor=0.0)
    reference = torch.optim.AdamW(
        [
            {"params": [p for p in other.parameters() if p.ndim > 1], "weight_decay": DECAY},
            {"params": [p for p in other.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=LR,
    )
    descend(one, optimizer.step, steps=3)
    descend(other, reference.step, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_layers_decay_and_norms_and_biases_do_not() -> None:
    network = layers()
    before = weights(network)
    optimizer = optimizer_of(network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    hidden, bias, scale, shift, linear, linear_bias = weights(network)
    torch.testing.assert_close(hidden, before[0] * (1 - 2.0 * LR * DECAY))
    torch.testing.assert_close(linear, before[4] * (1 - LR * DECAY))
    for found, expected in ((bias, before[1]), (scale, before[2]), (shift, before[3]), (linear_bias, before[5])):
        assert torch.equal(found, expected)


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    network = layers()
    before = weights(network)
    optimizer_of(network).step()
    assert all(torch.equal(a, b) for a, b in zip(weights(network), before, strict=True))


def test_it_goes_on_from_its_state_as_if_nothing_had_happened() -> None:
    whole, cut = layers(), layers()
    descend(whole, optimizer_of(whole).step, steps=4)
    first = optimizer_of(cut)
    descend(cut, first.step, steps=2)
    again = optimizer_of(cut)
    again.load_state_dict(first.state_dict())
    descend(cut, again.step, steps=2, first=2)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(cut), strict=True))


def test_how_weights_lie_in_memory_does_not_matter() -> None:
    one, other = layers(), layers().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert not other.get_parameter("0.weight").is_contiguous()
    for network in (one, other):
        descend(network, optimizer_of(network).step, steps=2)
    for a, b in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_state_is_read_whichever_way_weights_lie_in_memory() -> None:
    one, other = layers(), layers().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first, second = optimizer_of(one), optimizer_of(other)
    descend(one, first.step, steps=2)
    other.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    descend(one, first.step, steps=1, first=2)
    descend(other, second.step, steps=1, first=2)
    for a, b in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_its_rate_is_set_for_both_at_once() -> None:
    optimizer = optimizer_of(layers())
    optimizer.set_lr(0.5)
    assert {group["muon"]: group["lr"] for group in optimizer.param_groups} == {False: 0.5, True: 1.0}
