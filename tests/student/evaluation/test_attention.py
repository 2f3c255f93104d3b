"""What heads look at, against objects, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from student.evaluation.attention import best_head, head_scores
from student.evaluation.object_masks import ObjectTruth


def truth() -> ObjectTruth:
    """Return an object on the four cells in the upper left, of cells of 4 x 4 pixels, and one in the lower right."""
    ids = np.zeros((16, 24), np.int64)
    ids[:8, :8], ids[12:, 20:] = 1, 2
    return ObjectTruth(ids, np.array([8, 4]))


def maps() -> torch.Tensor:
    """Return two heads on a grid of 4 x 6: one looks at the first object alone, the other at everything."""
    looks = torch.full((2, 4, 6), 1 / 24)
    looks[0] = 0
    looks[0, :2, :2] = 0.25
    return looks


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_head_on_an_object_is_its_mask_and_one_on_everything_is_little_of_it() -> None:
    found = head_scores(maps(), truth(), generator(), mass=0.9)
    assert found.jaccard[0, 0] == 1
    assert found.jaccard[1, 0] == 0
    # 90 % of 24 cells are 22, of which at most four are the object's.
    assert 0 < found.jaccard[0, 1] <= 4 / 22


def test_attention_inside_objects_is_compared_with_their_area() -> None:
    found = head_scores(maps(), truth(), generator())
    assert found.inside.tolist() == pytest.approx([24 / 5, 1])


def test_random_masks_have_the_heads_areas() -> None:
    looks = torch.rand(6, 4, 6, generator=generator())
    # Of masks that cover everything the best is the object's share of the image.
    found = head_scores(looks, truth(), generator(), mass=1.1)
    assert found.tilings.tolist() == pytest.approx([4 / 24, 1 / 24])
    few = head_scores(maps()[:1], truth(), generator(), mass=0.9)
    assert few.tilings[0] < 1


def test_the_best_head_is_that_of_the_mean_over_objects() -> None:
    scores = [head_scores(maps().flip(0), truth(), generator(), mass=0.9)]
    assert best_head(scores) == 1


def test_images_without_objects_count_for_nothing() -> None:
    nothing = ObjectTruth(np.zeros((16, 24), np.int64), np.zeros(0, np.int64))
    found = head_scores(maps(), nothing, generator())
    assert found.jaccard.shape == (0, 2)
    assert found.tilings.shape == (0,)
    assert np.isnan(found.inside).all()
