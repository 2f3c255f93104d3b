"""Corruptions do to an image what they are called, the same for every student."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from student.config import StudentError
from student.evaluation.corruptions import (
    CORRUPTIONS,
    STRENGTHS,
    UNCHANGED,
    Corruption,
    CorruptionResult,
    corrupted,
    evaluate_corrupted,
    kept,
)
from student.evaluation.run import evaluate_student
from tests.student.students import build, objects_of, sample, samples

THREE = samples(3)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image() -> Tensor:
    """Return coarse patches of colors between .2 and .8."""
    patches = 0.2 + 0.6 * torch.rand(3, 8, 12, generator=chance(1))
    return patches.repeat_interleave(8, 1).repeat_interleave(8, 2)


def changed(kind: str, strength: int, before: Tensor | None = None) -> Tensor:
    return corrupted(image() if before is None else before, Corruption(kind=kind, strength=strength), chance())


@pytest.mark.parametrize("kind", STRENGTHS)
def test_a_stronger_corruption_changes_more_and_stays_an_image(kind: str) -> None:
    weak, middle, strong = (float((changed(kind, strength) - image()).abs().mean()) for strength in (1, 2, 3))
    assert 0 < weak < middle < strong
    for strength in (1, 2, 3):
        after = changed(kind, strength)
        assert after.shape == image().shape
        assert 0 <= float(after.min()) <= float(after.max()) <= 1


def test_blur_spreads_a_point_by_its_deviation() -> None:
    point = torch.zeros(3, 33, 33)
    point[:, 16, 16] = 1
    spread = changed("blur", 3, point)[0].double()
    rows = torch.arange(33.0, dtype=torch.float64) - 16
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert float((spread.sum(1) * rows**2).sum()) == pytest.approx(2.0**2, rel=0.05)


def test_noise_has_its_deviation() -> None:
    gray = torch.full((3, 64, 96), 0.5)
    assert float((changed("noise", 1, gray) - gray).std()) == pytest.approx(0.08, rel=0.03)


def test_brightness_raises_the_largest_value_and_keeps_the_color() -> None:
    orange = torch.tensor([0.6, 0.3, 0.0])[:, None, None].expand(3, 4, 4)
    assert changed("brightness", 2, orange)[:, 0, 0].tolist() == pytest.approx([0.9, 0.45, 0.0])


def test_fog_leaves_less_contrast() -> None:
    def contrast(one: Tensor) -> float:
        # On both sides of an edge between patches fog is almost the same.
        return float((one[:, :, 7:95:8] - one[:, :, 8:96:8]).abs().mean())

    assert contrast(changed("fog", 3)) < 0.5 * contrast(image())


def test_unchanged_images_have_the_metrics_of_an_evaluation_and_every_corruption_follows() -> None:
    student = build().eval()
    found = evaluate_corrupted(student, [THREE[:2], THREE[2:]], 0)
    assert [one.corruption for one in found] == list(CORRUPTIONS)
    evaluated = dict(evaluate_student(student, [THREE[:2], THREE[2:]], None).metrics)
    del evaluated["images_per_second"]
    assert found[0].metrics == evaluated


def test_how_images_are_grouped_changes_no_corruption() -> None:
    student = build().eval()
    together, apart = (
        evaluate_corrupted(student, batches, 0)[4].examples for batches in ([THREE], [[one] for one in THREE])
    )
    assert [one.sample.key for one in together] == [one.sample.key for one in apart]
    assert all(torch.equal(a.sample.image, b.sample.image) for a, b in zip(together, apart, strict=True))


def test_what_is_left_is_the_mean_over_corruptions() -> None:
    def result(corruption: Corruption, ap50: float) -> CorruptionResult:
        return CorruptionResult(corruption=corruption, images=1, objects=1, metrics={"AP50": ap50}, examples=[])

    some = [result(UNCHANGED, 0.4), result(CORRUPTIONS[1], 0.3), result(CORRUPTIONS[2], 0.1)]
    assert kept(some) == pytest.approx(0.5)
    assert kept([result(UNCHANGED, 0.0), *some[1:]]) is None


def test_images_without_labels_are_refused() -> None:
    with pytest.raises(StudentError, match="none of the images has a labelled object"):
        evaluate_corrupted(build().eval(), [[sample(0, objects_of())]], 0)
