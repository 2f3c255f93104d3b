"""What the paper's loss of two heads asks for, by its own formula and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.student.pretraining.attention_heads import best_order, head_loss, literal_loss

N = 192


def objects(share: float = 0.2) -> Tensor:
    return (torch.arange(N) < share * N).float()[None]


def even(mask: Tensor) -> Tensor:
    """Return attention that is the same on all of a mask [1, N] and nowhere else."""
    return mask / mask.sum()


def test_the_literal_loss_is_the_papers_formula() -> None:
    random = np.random.default_rng(0)
    a1, a2, m = random.random((3, 4, 7))
    expected = [sum((m[b, i] * a1[b, i] - (1 - m[b, i]) * a2[b, i]) ** 2 for i in range(7)) / 7 for b in range(4)]
    assert literal_loss(*(torch.from_numpy(each) for each in (a1, a2, m))).tolist() == pytest.approx(expected)


def test_of_whole_patches_it_is_two_terms_that_never_meet() -> None:
    a1, a2 = torch.rand(2, 3, N)
    m = (torch.rand(3, N) < 0.3).float()
    apart = (m * a1.square() + (1 - m) * a2.square()).mean(1)
    torch.testing.assert_close(literal_loss(a1, a2, m), apart)


def test_it_is_least_where_the_first_head_looks_away_from_the_objects() -> None:
    m = objects()
    wished, reverse = (even(m), even(1 - m)), (even(1 - m), even(m))
    uniform = (torch.full((1, N), 1 / N),) * 2
    assert float(literal_loss(*reverse, m)) == 0
    # The wished-for order costs more than none at all.
    assert float(literal_loss(*wished, m)) == pytest.approx(1.7e-4, rel=0.1)
    assert float(literal_loss(*uniform, m)) == pytest.approx(2.7e-5, rel=0.02)


def test_it_is_nothing_where_all_attention_is_the_class_tokens() -> None:
    assert float(head_loss(torch.zeros(1, 2, N), objects(), "literal")) == 0


def test_exchanging_heads_and_objects_changes_nothing() -> None:
    a1, a2, m = torch.rand(3, 2, N).unbind(0)
    torch.testing.assert_close(literal_loss(a1, a2, m), literal_loss(a2, a1, 1 - m))


def test_rescaled_it_has_no_way_out_and_is_of_size_one() -> None:
    m, away = objects(), torch.full((1, 2, N), 1e-6)
    uniform = torch.full((1, 2, N), 1 / N)
    assert float(head_loss(uniform, m, "rescaled")) == pytest.approx(1)
    # All but the last millionth is the class token's.
    assert float(head_loss(away, m, "rescaled")) == pytest.approx(1)
    reverse = torch.stack([even(1 - m), even(m)], 1)
    assert float(head_loss(reverse, m, "rescaled")) == 0


def test_corrected_it_is_least_in_the_wished_for_order() -> None:
    m = objects()
    wished, reverse = (torch.stack(each, 1) for each in ((even(m), even(1 - m)), (even(1 - m), even(m))))
    assert float(head_loss(wished, m, "corrected")) == pytest.approx(0, abs=1e-5)
    uniform = torch.full((1, 2, N), 1 / N)
    share = float(m.mean())
    assert float(head_loss(uniform, m, "corrected")) == pytest.approx(-np.log(share) - np.log(1 - share), rel=1e-4)
    assert float(head_loss(reverse, m, "corrected")) > 20


@pytest.mark.parametrize(("form", "is_on_objects"), [("literal", False), ("rescaled", False), ("corrected", True)])
def test_descending_each_form_leads_the_first_head_there(form: str, is_on_objects: bool) -> None:
    m, logits = objects(), torch.zeros(1, 2, N, requires_grad=True)
    for _ in range(60):
        loss = head_loss(logits.softmax(2), m, form)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            # The sign alone: the literal one is too small to be felt.
            logits -= 0.1 * gradient.sign()
    mass = float((logits.softmax(2)[0, 0] * m[0]).sum().detach())
    assert (mass > float(m.mean())) == is_on_objects


def test_heads_are_scored_in_their_better_order() -> None:
    m = objects() > 0
    masks = torch.stack([~m, m], 1)
    assert best_order(masks, m).tolist() == best_order(masks.flip(1), m).tolist() == [1]
    assert float(best_order(torch.stack([m, m], 1), m)) == pytest.approx((1 + 0) / 2)
