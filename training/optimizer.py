"""Muon for the hidden weight matrices, AdamW for everything else, as one torch optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from training.objective import ParameterGroup

# Newton-Schulz coefficients that maximize the slope at zero, and the number of iterations: Jordan et al. 2024.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# From so many columns for each row on, iterating on the Gram matrix has fewer products: 17 R³ + 2 R² C instead of
# 5 (R³ + 2 R² C).
_WIDE = 1.5
_MOMENTUM = 0.95
# Below these sizes a GPU has nothing to gain from matrices' being smaller.
_FEW_ROWS, _FEW_COLUMNS = 64, 1024
_BETAS, _EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How fast."""

    # The highest learning rate, reached after the warm-up; from there half a cosine leads down.
    learning_rate: float = 3e-3
    # Muon optimizes the hidden weight matrices, at so many times that rate; 0: AdamW does, as all else.
    muon_lr_factor: float = 2.0
    # The rate of weights that were given, such as a pre-trained trunk's, in multiples of the others': what they know
    # would be forgotten at a rate for random ones.
    pretrained_lr_factor: float = 0.1
    # Decay of weights per step, times the learning rate.
    weight_decay: float = 0.02
    # Gradients are scaled down to this L2 norm.
    max_gradient_norm: float = 10.0


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) on hidden weight matrices, and AdamW on all other parameters.

    Muon makes every singular value of a layer's update about equal: what is new in a layer moves as fast as what is
    common. Layers that face images or answers, norms and biases stay with AdamW. Muon's updates are scaled to the
    root mean square that AdamW's have (0.2 sqrt(longer side): Liu et al. 2025), so that both share one rate and one
    decay; state and conventions are those of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`.

    Muon also enlarges rounding, since directions in which a gradient is next to nothing become as long as the others:
    several workers then do only roughly what one does.

    hidden: weights that Muon optimizes; of a convolution's [outputs, inputs, h, w] the matrix [outputs, all else]
    others: all other parameters; weights of layers decay, norms and biases (one dimension) do not
    pretrained: those of both that start from given weights
    muon_lr_factor: Muon's rate in multiples of AdamW's; 0: AdamW for the hidden weights as well
    pretrained_lr_factor: the rate of pretrained weights in multiples of the others'
    bfloat16: orthogonalize in bfloat16 rather than float32. That is for GPUs: a CPU takes longer, one without bfloat16
        arithmetic fifty times as long.
    """

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        pretrained: Iterable[nn.Parameter] = (),
        *,
        muon_lr_factor: float,
        pretrained_lr_factor: float = 1.0,
        weight_decay: float,
        bfloat16: bool,
    ) -> None:
        hidden, others = list(hidden), list(others)
        if not muon_lr_factor:
            hidden, others = [], [*hidden, *others]
        self._dtype = torch.bfloat16 if bfloat16 else torch.float32
        parts = [
            ([p for p in others if p.ndim > 1], False, 1.0, weight_decay),
            ([p for p in others if p.ndim <= 1], False, 1.0, 0.0),
            (hidden, True, muon_lr_factor, weight_decay),
        ]
        given = {id(parameter) for parameter in pretrained}
        groups: list[dict[str, Any]] = [
            {
                "params": [p for p in parameters if (id(p) in given) == of_given],
                "muon": muon,
                "lr_factor": factor * (pretrained_lr_factor if of_given else 1.0),
                "weight_decay": decay,
            }
            for of_given in (False, True)
            for parameters, muon, factor, decay in parts
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": 0.0})

    def set_lr(self, lr: float) -> None:
        """Set AdamW's rate, and Muon's to its multiple."""
        for group in self.param_groups:
            group["lr"] = group["lr_factor"] * lr

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Follow the gradients of the parameters that have one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["muon"]:
                self._muon_step(parameters, group["lr"], group["weight_decay"])
            else:
                self._adamw_step(parameters, group["lr"], group["weight_decay"])
        return loss

    def _adamw_step(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        if not parameters:
            return
        fused = all(parameter.is_cuda for parameter in parameters)
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            if fused:
                # The kernel that does the whole step counts on the device; a state that was read again is on the CPU.
                state["step"] = state["step"].to(parameter.device)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            list[Tensor](parameters),
            _gradients(parameters),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=fused or None,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=_EPS,
            maximize=False,
        )

    def _muon_step(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        if not parameters:
            return
        gradients = _gradients(parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        nesterov = torch._foreach_lerp(gradients, momenta, _MOMENTUM)
        torch._foreach_mul_(list[Tensor](parameters), 1 - lr * weight_decay)
        matrices = [update.reshape(len(update), -1) for update in nesterov]
        updates = orthogonalize_all(matrices, self._dtype, padded=parameters[0].is_cuda)
        # One call for all of a length: they share a rate.
        alike: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, update in zip(parameters, updates, strict=True):
            alike[max(update.shape)].append((parameter, update.unflatten(1, parameter.shape[1:])))
        for longer, pairs in alike.items():
            weights, moves = zip(*pairs, strict=True)
            torch._foreach_add_(list(weights), list(moves), alpha=-lr * 0.2 * longer**0.5)


def orthogonalize_all(matrices: Sequence[Tensor], dtype: torch.dtype, *, padded: bool) -> list[Tensor]:
    """Return what `orthogonalize` makes of each [R, C], of any shapes, in `dtype`; views of what is computed at once.

    padded: matrices of about the same size go through together, with zeros behind their rows and columns, which changes
        nothing of the rest. A GPU takes as long for a large stack as for a small one; a CPU would compute the zeros.
    """
    # Of a matrix with more rows than columns the transposed is smaller.
    wide = [matrix.T if matrix.shape[0] > matrix.shape[1] else matrix for matrix in matrices]
    stacks: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, matrix in enumerate(wide):
        stacks[_about(matrix.shape) if padded else tuple(matrix.shape)].append(number)
    results = list(matrices)
    for numbers in stacks.values():
        rows, columns = (max(wide[number].shape[axis] for number in numbers) for axis in (0, 1))
        stack = matrices[0].new_zeros(len(numbers), rows, columns, dtype=dtype)
        chosen = [wide[number] for number in numbers]
        torch._foreach_copy_([_corner(*pair) for pair in zip(stack, chosen, strict=True)], chosen)
        for number, found in zip(numbers, orthogonalize(stack), strict=True):
            found = _corner(found, wide[number])
            results[number] = found.T if wide[number] is not matrices[number] else found
    return results


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return [N, R, C] with R <= C, whose singular values were all moved to about 1 (0.7 … 1.2) by Newton-Schulz.

    The quintic iteration of Jordan et al. 2024, in the dtype of its input; a matrix of zeros stays one.
    """
    a, b, c = _COEFFICIENTS
    x = matrices / matrices.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    rows, columns = x.shape[1:]
    if x.dtype == torch.float32 and columns > _WIDE * rows:
        return _gram_factor(x @ x.mT) @ x
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _gram_factor(gram: Tensor) -> Tensor:
    """Return of the Gram matrix x xᵀ [N, R, R] the factor F of the same iteration's result F x.

    Each iteration multiplies x from the left by q = a + b g + c g², a polynomial of its Gram matrix g, whose next is
    q g q: none of them needs x. In bfloat16 the Gram matrix would lose the small singular values, which are squared.
    """
    a, b, c = _COEFFICIENTS
    factor: Tensor | None = None
    for iteration in range(_ITERATIONS):
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal(dim1=1, dim2=2).add_(a)
        factor = step if factor is None else step @ factor
        if iteration + 1 < _ITERATIONS:
            gram = step @ gram @ step
    assert factor is not None
    return factor


def _about(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns [2] of the class of matrices that one of this shape goes with."""
    rows, columns = ((side - 1).bit_length() for side in shape)
    return max(_FEW_ROWS, 1 << rows), max(_FEW_COLUMNS, 1 << columns + columns % 2)


def _corner(larger: Tensor, like: Tensor) -> Tensor:
    """Return of a matrix the view [R, C] that is as large as another."""
    return larger[: like.shape[0], : like.shape[1]]


def build_optimizer(groups: Sequence[ParameterGroup], config: OptimizerConfig, *, bfloat16: bool) -> MuonAdamW:
    """Return the optimizer of all trainable parameters in the groups."""
    hidden = [p for group in groups for p in group.hidden]
    known = {id(weight) for weight in hidden}
    others = [p for group in groups for p in group.parameters if p.requires_grad and id(p) not in known]
    return MuonAdamW(
        hidden,
        others,
        [p for group in groups for p in group.pretrained],
        muon_lr_factor=config.muon_lr_factor,
        pretrained_lr_factor=config.pretrained_lr_factor,
        weight_decay=config.weight_decay,
        bfloat16=bfloat16,
    )


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
