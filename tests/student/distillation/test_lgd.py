"""A student whose pyramid is to be like maps that are made of its own labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datalake.sample import Objects
from student.config import StudentError
from student.detector import Student
from student.distillation.batch import DetectionBatch
from student.distillation.instructive_maps import (
    LabelEncoder,
    box_masks,
    descriptors,
    filled_map,
    masked_mean,
)
from student.distillation.lgd import LGD, LGDConfig, normed_distance
from student.distillation.objective import DetectionObjective, LossWeights
from student.export import WEIGHTS_FILE, load_exported, weights_file
from student.labels import labels_on
from tests.student.students import HEIGHT, TINY, WIDTH, build, objects_of, sample, samples
from training.generators import Chance
from training.objective import Batch, Loss

SIZE = (HEIGHT, WIDTH)
GRIDS = [(16, 24), (8, 12), (4, 6), (2, 3)]
CPU = torch.device("cpu")
DETECTION = ["objectness", "rpn_box", "classification", "box", "depth"]
CONTEXT = LGDConfig(context=True)
# Of these, the last is too small for a cell of the coarser levels.
FIVE = objects_of(
    (0, 0, 40, 30, 1, 9.0), (20, 10, 70, 60, 3, 20.0), (8, 8, 24, 24, 2, 5.0), (50, 2, 95, 63, 4, 7.0),
    (33, 33, 38, 39, 1, 8.0),
)  # fmt: skip


def objective(config: LGDConfig | None = None, seed: int = 0) -> DetectionObjective:
    """Return a student of a seed with LGD."""
    student = build(TINY, seed)
    torch.manual_seed(2)
    return DetectionObjective(student, LossWeights(), {"lgd": LGD(config or LGDConfig(), TINY, LossWeights())})


def method_of(taught: DetectionObjective) -> LGD:
    method = taught.methods["lgd"]
    assert isinstance(method, LGD)
    return method


def batch(places: list[int], labelled: int, objects: Sequence[Objects] = ()) -> DetectionBatch:
    """Return these images of a batch of four, the first of them with other objects where there are some."""
    chosen = [samples(4)[place] for place in places]
    chosen[: len(objects)] = [sample(place, some) for place, some in zip(places, objects, strict=False)]
    return objective().collate(Batch(chosen, labelled, 0), {}, Chance(0, 0, tuple(places)))


def some_pyramid(images: int, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(images, TINY.width, *grid) for grid in GRIDS]


def shuffled(objects: Objects, order: Sequence[int]) -> Objects:
    chosen = list(order)
    return Objects(objects.boxes[chosen], objects.classes[chosen], objects.depth_m[chosen])


def embeddings_of(encoder: LabelEncoder, objects: Objects) -> Tensor:
    labels = labels_on(CPU, [objects])
    found: Tensor = encoder(descriptors(labels.boxes, labels.classes, SIZE, TINY.classes), labels.valid)[0]
    return found.detach()


def maps_of(method: LGD, pyramid: Sequence[Tensor], objects: Sequence[Objects]) -> list[Tensor]:
    found: tuple[Tensor, ...] = method.maps(pyramid, labels_on(CPU, objects), SIZE)
    return [level.detach() for level in found]


def masks_of(objects: Objects, grid: tuple[int, int]) -> Tensor:
    labels = labels_on(CPU, [objects])
    return box_masks(labels.boxes, labels.valid, grid, SIZE)


def reached(module: nn.Module) -> set[str]:
    """Return the names of the parameters that have a gradient that is not 0."""
    return {name for name, p in module.named_parameters() if p.grad is not None and bool(p.grad.any())}


def summed(losses: dict[str, Loss], names: Sequence[str]) -> Tensor:
    return torch.stack([losses[name].value for name in names]).sum()


# The label encoder.


def test_a_descriptor_is_the_box_in_shares_of_the_image_and_the_class() -> None:
    labels = labels_on(CPU, [objects_of((24, 16, 96, 64, 3, 1.0))])
    (found,) = descriptors(labels.boxes, labels.classes, SIZE, TINY.classes)[0].tolist()
    # Edges are at most the last pixel; all is moved from 0 … 1 to -1 … 1.
    assert found == pytest.approx([-0.5, -0.5, 2 * 95 / 96 - 1, 2 * 63 / 64 - 1, -1, -1, 1, -1])


def test_with_the_official_sizes_the_encoder_has_the_official_number_of_weights() -> None:
    official = LabelEncoder(84, 256, (64, 128, 1024), (512, 256))
    # 2,615,376 and 1,853,376 of its transforms among them; the second is of the embeddings' layer.
    assert sum(p.numel() for p in official.parameters()) == 4_893_392 + 65_792


def test_the_order_of_objects_permutes_their_embeddings() -> None:
    encoder = method_of(objective()).maps.encoder
    order = [3, 0, 4, 2, 1]
    expected, found = embeddings_of(encoder, FIVE), embeddings_of(encoder, shuffled(FIVE, order))
    torch.testing.assert_close(found, expected[order], rtol=0, atol=1e-5)
    assert len({tuple(row) for row in expected.round(decimals=3).tolist()}) == 5


def test_an_object_that_is_there_twice_says_nothing_new() -> None:
    encoder = method_of(objective()).maps.encoder
    twice = embeddings_of(encoder, shuffled(FIVE, [0, 1, 2, 3, 4, 2]))
    torch.testing.assert_close(twice[:5], embeddings_of(encoder, FIVE), rtol=0, atol=1e-5)
    # Another object does.
    assert not torch.allclose(embeddings_of(encoder, shuffled(FIVE, range(4))), twice[:4], atol=1e-3)


# Where objects are.


@pytest.mark.parametrize("grid", GRIDS)
def test_a_box_has_the_cells_whose_places_lie_in_it(grid: tuple[int, int]) -> None:
    stride = WIDTH // grid[1]
    for box, mask in zip(FIVE.boxes.tolist(), masks_of(FIVE, grid)[0], strict=True):
        left, top, right, bottom = box
        cells = {(row, column) for row in range(grid[0]) for column in range(grid[1])}
        center, half = ((left + right) / 2, (top + bottom) / 2), ((right - left) / 2, (bottom - top) / 2)
        inside = {
            (row, column)
            for row, column in cells
            if abs(column * stride - center[0]) <= half[0] and abs(row * stride - center[1]) <= half[1]
        }
        assert {(row, column) for row, column in cells if mask[row, column] == 1} == inside
        assert float(mask.sum()) == len(inside)


def test_where_there_is_no_object_there_is_no_cell() -> None:
    labels = labels_on(CPU, [FIVE, objects_of((0, 0, 4, 4, 1, 1.0))])
    masks = box_masks(labels.boxes, labels.valid, GRIDS[0], SIZE)
    assert masks[1].sum((1, 2)).tolist() == [4, 0, 0, 0, 0]


def test_appearance_is_the_mean_over_an_objects_cells_and_0_without_any() -> None:
    features, grid = some_pyramid(1)[2], GRIDS[2]
    masks = masks_of(FIVE, grid)
    found = masked_mean(features, masks)[0].numpy()
    for row, mask in zip(found, masks[0].bool().numpy(), strict=True):
        expected = features[0].numpy()[:, mask].mean(1) if mask.any() else np.zeros(TINY.width)
        np.testing.assert_allclose(row, expected, atol=1e-6)
    assert not masks[0, 4].any()


def test_a_lone_box_is_filled_with_one_vector_and_overlaps_add_up() -> None:
    grid = GRIDS[0]
    masks = masks_of(FIVE, grid)
    vectors = torch.randn(1, 5, TINY.width, generator=torch.Generator().manual_seed(0))
    found = filled_map(vectors, masks)[0]
    expected = torch.zeros(TINY.width, *grid)
    for number in range(5):
        for row in range(grid[0]):
            for column in range(grid[1]):
                if masks[0, number, row, column]:
                    expected[:, row, column] += vectors[0, number]
    torch.testing.assert_close(found, expected)
    lone = filled_map(vectors[:, :1], masks[:, :1])[0]
    assert torch.equal(lone[:, masks[0, 0] == 1], vectors[0, 0][:, None].expand(-1, int(masks[0, 0].sum())))
    assert not bool(lone[:, masks[0, 0] == 0].any())


# The relation of objects.


def related(method: LGD, objects: Objects) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [4 M, C], keys [M, C] and what the attention made of them [4 M, C], of one image."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        seen.extend([inputs[0][0], inputs[1][0], output[0][0]])

    handle = method.maps.relation.register_forward_hook(keep)
    # Its batch mate has more objects, so that there are places without one.
    more = shuffled(FIVE, [*range(5), 0, 1])
    maps_of(method, some_pyramid(2), [objects, more])
    handle.remove()
    count = len(objects.boxes)
    queries, keys, values = (tensor.detach() for tensor in seen)
    levels = [level[:count] for level in queries.chunk(4)]
    return torch.cat(levels), keys[:count], torch.cat([level[:count] for level in values.chunk(4)])


def test_the_relation_is_attention_of_eight_heads_from_appearance_to_labels() -> None:
    method = method_of(objective())
    nn.init.normal_(method.maps.relation.in_proj_bias)
    queries, keys, found = (tensor.double().numpy() for tensor in related(method, FIVE))
    weights = {name: p.detach().double().numpy() for name, p in method.maps.relation.named_parameters()}
    width = TINY.width
    query, key, value = (
        rows @ weights["in_proj_weight"][part * width : (part + 1) * width].T
        + weights["in_proj_bias"][part * width : (part + 1) * width]
        for part, rows in enumerate((queries, keys, keys))
    )
    heads = []
    for head in np.split(np.arange(width), 8):
        scores = query[:, head] @ key[:, head].T / math.sqrt(width / 8)
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        assert shares.shape == (20, 5)
        heads.append(shares @ value[:, head])
    expected = np.concatenate(heads, 1) @ weights["out_proj.weight"].T + weights["out_proj.bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_single_object_is_related_to_itself_whatever_it_looks_like() -> None:
    method = method_of(objective())
    queries, keys, found = related(method, objects_of((10, 10, 60, 50, 2, 3.0)))
    assert len({tuple(row) for row in queries.round(decimals=3).tolist()}) > 1
    weights = method.maps.relation
    value = nn.functional.linear(keys, weights.in_proj_weight[-TINY.width :], weights.in_proj_bias[-TINY.width :])
    torch.testing.assert_close(found, weights.out_proj(value).detach().expand(4, -1), rtol=0, atol=1e-5)


# The maps.


@pytest.mark.parametrize("config", [LGDConfig(), CONTEXT], ids=["plain", "context"])
def test_maps_do_not_depend_on_the_order_of_objects_or_on_other_images(config: LGDConfig) -> None:
    method, pyramid = method_of(objective(config)), some_pyramid(2)
    two = objects_of((5, 5, 30, 30, 1, 9.0), (20, 20, 90, 60, 4, 9.0))
    alone = maps_of(method, [level[:1] for level in pyramid], [two])
    assert [tuple(level.shape) for level in alone] == [(1, TINY.width, *grid) for grid in GRIDS]
    for others in (
        maps_of(method, [level[:1] for level in pyramid], [shuffled(two, [1, 0])]),
        maps_of(method, pyramid, [two, FIVE]),
    ):
        for expected, found in zip(alone, others, strict=True):
            torch.testing.assert_close(found[:1], expected, rtol=0, atol=1e-5)


def test_outside_of_boxes_a_map_is_constant_and_labels_and_appearance_decide_within() -> None:
    method, pyramid = method_of(objective()), some_pyramid(1)
    one = objects_of((2, 2, 17, 14, 1, 9.0))
    (found, *_) = maps_of(method, pyramid, [one])
    # Four convolutions reach four cells beyond the box, and four within the border of the map.
    far = found[0, :, 8:-4, 9:-4]
    assert float((far - far[:, :1, :1]).abs().max()) < 1e-5
    assert float(found[0].std()) > 0.1
    other_class = maps_of(method, pyramid, [objects_of((2, 2, 17, 14, 2, 9.0))])[0]
    assert not torch.allclose(found, other_class, atol=1e-3)
    two = objects_of((2, 2, 17, 14, 1, 9.0), (40, 20, 70, 50, 2, 9.0))
    seen, otherwise = maps_of(method, pyramid, [two])[0], maps_of(method, some_pyramid(1, seed=1), [two])[0]
    assert not torch.allclose(seen, otherwise, atol=1e-4)


def test_the_context_object_is_rendered_everywhere() -> None:
    method, pyramid = method_of(objective(CONTEXT)), some_pyramid(1)
    rendered: list[Tensor] = []
    handle = method.maps.refine.register_forward_hook(lambda _module, inputs, _output: rendered.append(inputs[0]))
    maps_of(method, pyramid, [objects_of((2, 2, 17, 14, 1, 9.0))])
    handle.remove()
    assert method.maps.spread.bias is not None
    for level in rendered:
        far = level[0, :, -1, -1].detach() - method.maps.spread.bias.detach()
        # One that all of the level has, beside what the box adds.
        assert float(far.abs().max()) > 1e-3
        assert torch.allclose(level[0, :, -1, -1], level[0, :, -1, -2], atol=1e-6)


# The distance.


def test_the_distance_is_twice_what_correlation_lacks_of_1() -> None:
    own, other = some_pyramid(3)[1], some_pyramid(3, seed=1)[1]
    other = other + 0.5 * own
    lacking = [
        2 * (1 - np.corrcoef(own[image, channel].flatten(), other[image, channel].flatten())[0, 1])
        for image in range(3)
        for channel in range(TINY.width)
    ]
    assert float(normed_distance(own, other)) == pytest.approx(np.mean(lacking), rel=1e-4)


def test_scale_and_shift_of_a_channel_do_not_matter_but_its_sign_does() -> None:
    own, other = some_pyramid(2)[0], some_pyramid(2, seed=1)[0]
    torch.manual_seed(3)
    scale, shift = 0.5 + 3 * torch.rand(2, TINY.width, 1, 1), torch.randn(2, TINY.width, 1, 1)
    assert float(normed_distance(own, scale * own + shift)) == pytest.approx(0, abs=1e-6)
    assert float(normed_distance(own, shift - scale * own)) == pytest.approx(4, rel=1e-4)
    expected = float(normed_distance(own, other))
    assert float(normed_distance(scale * own + shift, other)) == pytest.approx(expected, rel=1e-3)
    assert float(normed_distance(own, scale * other + shift)) == pytest.approx(expected, rel=1e-3)


def test_maps_of_one_cell_or_of_one_value_have_a_finite_distance_and_gradient() -> None:
    for shape in ((2, 3, 1, 1), (2, 3, 4, 6)):
        flat = torch.full(shape, 7.0, requires_grad=True)
        varied = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        distance = normed_distance(flat, varied)
        distance.backward()
        assert 0 <= float(distance.detach()) <= 1.0001
        assert flat.grad is not None
        assert bool(flat.grad.isfinite().all())
    assert float(normed_distance(torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1))) == 0


# The losses.


def test_the_distillation_loss_is_the_mean_over_levels_of_the_distance_of_the_adapted_pyramid() -> None:
    taught, some = objective(), batch([0, 1], 2)
    method = method_of(taught)
    with torch.no_grad():
        pyramid = taught.student.features(some.images).pyramid
        pairs = zip([method.adapter(level) for level in pyramid], maps_of(method, pyramid, some.labels), strict=True)
    levels = []
    for pair in pairs:
        # The adapter's channels hardly vary at first: 1e-5, torch's for instance norms, tells.
        own, other = (
            (level - level.mean((2, 3), keepdims=True)) / np.sqrt(level.var((2, 3), keepdims=True) + 1e-5)
            for level in (one.double().numpy() for one in pair)
        )
        levels.append(((own - other) ** 2).mean())
    assert len(levels) == 4
    found = taught(some, 0.5)["lgd/distillation"].value
    assert float(found.detach()) == pytest.approx(sum(levels) / 4, rel=1e-4)


def test_each_labelled_image_counts_as_much_as_any_other_and_those_without_labels_do_not() -> None:
    taught = objective()
    together, alone = taught(batch([0, 1, 2], 2), 0.5), [taught(batch([place], 1), 0.5) for place in (0, 1)]
    assert list(together) == [*DETECTION, "lgd/distillation", *(f"lgd/{name}" for name in DETECTION)]
    for name, loss in together.items():
        mean = sum(float(one[name].value.detach()) for one in alone) / 2
        assert float(loss.value.detach()) == pytest.approx(mean, rel=1e-4, abs=1e-6)


def test_an_image_without_objects_counts_0_and_alone_teaches_nothing() -> None:
    taught, empty = objective(), objects_of()
    alone, beside = taught(batch([1], 1), 0.5), taught(batch([0, 1], 2, [empty]), 0.5)
    for name in ("distillation", *DETECTION):
        half = float(alone[f"lgd/{name}"].value.detach()) / 2
        assert float(beside[f"lgd/{name}"].value.detach()) == pytest.approx(half, rel=1e-4, abs=1e-6)
    # A box without an area is no object.
    for nothing in (empty, objects_of((5, 5, 5, 20, 1, 9.0))):
        losses = taught(batch([0], 1, [nothing]), 0.5)
        assert all(loss.value.item() == 0 for name, loss in losses.items() if name.startswith("lgd/"))
        taught.zero_grad()
        torch.stack([loss.value for loss in losses.values()]).sum().backward()
        assert not reached(method_of(taught))
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in taught.parameters())


def test_distillation_trains_adapter_and_backbone_and_not_what_makes_the_maps() -> None:
    taught = objective()
    taught(batch([0, 1], 2), 0.5)["lgd/distillation"].value.backward()
    assert reached(method_of(taught)) == {
        f"adapter.{layer}.{what}" for layer in (0, 2, 4) for what in ("weight", "bias")
    }
    assert {name.partition(".")[0] for name in reached(taught.student)} == {"backbone"}
    # From the finest level to the coarsest.
    assert {"backbone.fuse.0.weight", "backbone.downsample.2.0.weight"} <= reached(taught.student)


@pytest.mark.parametrize(("progress", "learns"), [(0.0, False), (0.333, False), (0.334, True), (0.99, True)])
def test_for_a_third_of_the_training_the_adapter_alone_learns_from_it(progress: float, learns: bool) -> None:
    taught = objective()
    loss = taught(batch([0, 1], 2), progress)["lgd/distillation"].value
    loss.backward()
    assert float(loss.detach()) > 0
    assert bool(reached(method_of(taught).adapter))
    assert bool(reached(taught.student)) == learns


@pytest.mark.parametrize("attached", [False, True])
def test_detection_on_the_maps_trains_heads_and_maps_and_the_backbone_where_asked_to(attached: bool) -> None:
    taught = objective(LGDConfig(appearance_trains_backbone=attached))
    losses = taught(batch([0, 1], 2), 0.5)
    summed(losses, [f"lgd/{name}" for name in DETECTION]).backward()
    parts = {name.partition(".")[0] for name in reached(taught.student)}
    assert parts == ({"backbone", "rpn", "heads"} if attached else {"rpn", "heads"})
    found = reached(method_of(taught))
    assert found == {name for name, _ in method_of(taught).named_parameters() if not name.startswith("adapter.")}


def test_with_weights_zero_the_student_is_trained_as_without_it() -> None:
    some = [batch([0, 1, 2], 2), batch([0, 1, 2], 2)]
    none = DetectionObjective(build(TINY), LossWeights(), {})
    silent = objective(LGDConfig(weight=0, detection_weight=0))
    losses = [one(given, 0.5) for one, given in zip((none, silent), some, strict=True)]
    # Its own sampling takes no number of the student's.
    assert all(torch.equal(loss.value, losses[1][name].value) for name, loss in losses[0].items())
    for each in losses:
        torch.stack([loss.weight * loss.value for loss in each.values()]).sum().backward()
    pairs = list(zip(none.student.parameters(), silent.student.parameters(), strict=True))
    assert sum(one.grad is not None for one, _ in pairs) > 50
    for one, other in pairs:
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or other.grad is None or torch.equal(one.grad, other.grad)
    assert all(torch.equal(*(g.get_state() for g in two)) for two in zip(*(s.generators for s in some), strict=True))


def test_detection_on_the_maps_alone_is_a_control_without_distillation() -> None:
    weights = LossWeights(box=5)
    student = build(TINY)
    method = LGD(LGDConfig(weight=0, detection_weight=0.5), TINY, weights)
    losses = DetectionObjective(student, weights, {"lgd": method})(batch([0], 1), 0.5)
    assert losses["lgd/distillation"].weight == 0
    assert {name: losses[f"lgd/{name}"].weight for name in DETECTION} == {
        "objectness": 0.5, "rpn_box": 1.5, "classification": 0.5, "box": 2.5, "depth": 0.5,
    }  # fmt: skip


def test_under_autocast_the_losses_are_float32_and_about_the_same() -> None:
    taught, some = objective(), batch([0, 1], 2)
    output = taught.student.training_output(some.images, some.labels, some.generators)
    maps: list[Tensor] = []
    method_of(taught).maps.register_forward_hook(lambda _module, _inputs, output: maps.extend(output))
    expected = method_of(taught).losses(taught.student, output, some, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = method_of(taught).losses(taught.student, output, some, 0.5)
    assert {level.dtype for level in maps} == {torch.float32}
    for name in ("lgd/distillation", "lgd/objectness"):
        assert found[name].value.dtype == torch.float32
        assert float(found[name].value.detach()) == pytest.approx(float(expected[name].value.detach()), rel=0.02)


# What comes of it.


def test_the_product_is_a_student_that_has_nothing_of_it(tmp_path: Path) -> None:
    taught, some = objective(), batch([0, 1], 2)
    student, method = taught.parameter_groups()
    assert method.name == "lgd"
    assert {id(p) for p in method.parameters} == {id(p) for p in method_of(taught).parameters()}
    assert not {id(p) for p in student.parameters} & {id(p) for p in method.parameters}
    torch.stack([loss.value for loss in taught(some, 0.5).values()]).sum().backward()
    torch.optim.SGD(taught.parameters(), lr=0.05).step()
    product = taught.eval().product()
    assert product.state_dict().keys() == build(TINY).state_dict().keys()
    (tmp_path / WEIGHTS_FILE).write_bytes(weights_file(product))
    exported = load_exported(str(tmp_path))
    assert not any("lgd" in name or "adapter" in name for name in exported.state_dict())
    found, expected = exported(some.images), taught.student(some.images)
    assert sum(len(one.boxes) for one in expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "classes", "scores"))


def test_its_settings_decide_about_a_run() -> None:
    plain = objective().fingerprint()
    for other in (
        LGDConfig(weight=2), LGDConfig(detection_weight=2), LGDConfig(start=0.5), CONTEXT,
        LGDConfig(appearance_trains_backbone=True),
    ):  # fmt: skip
        assert len(plain.items() ^ objective(other).fingerprint().items()) == 2
    assert plain["lgd.weight"] == 1


def test_a_student_whose_width_the_heads_cannot_share_is_refused() -> None:
    with pytest.raises(StudentError, match="lgd: expected a student whose width 8 heads share, got: 20"):
        LGD(LGDConfig(), replace(TINY, width=20), LossWeights())


def test_in_images_without_objects_the_maps_show_nothing() -> None:
    taught, some = objective(), batch([0, 1], 2)
    method, labels = method_of(taught), [objects_of(), some.labels[1]]
    with pytest.raises(StudentError, match="training mode"):
        method.detect(taught.student, some.images, labels)
    taught.eval()
    nothing, something = method.detect(taught.student, some.images, labels)
    assert len(nothing.boxes) == 0
    (alone,) = method.detect(taught.student, some.images[1:], labels[1:])
    assert len(something.boxes) > 0
    assert torch.equal(something.classes, alone.classes)
    torch.testing.assert_close(something.boxes, alone.boxes, rtol=0, atol=1e-3)
    assert method.detect(taught.student, some.images[:1], labels[:1])[0].scores.tolist() == []


def test_detections_in_the_maps_are_those_of_a_student_whose_pyramid_they_are() -> None:
    taught, some = objective(), batch([0, 1], 2)
    taught.eval()
    method = method_of(taught)
    with torch.no_grad():
        maps = maps_of(method, taught.student.features(some.images).pyramid, some.labels)
    other = copy.deepcopy(taught.student)

    class Shown(nn.Module):
        def forward(self, _images: Tensor) -> object:
            return replace(taught.student.features(some.images), pyramid=tuple(maps))

    other.backbone = Shown()  # type: ignore[assignment]
    assert isinstance(other, Student)
    for one, two in zip(method.detect(taught.student, some.images, some.labels), other(some.images), strict=True):
        assert torch.equal(one.boxes, two.boxes)
        assert torch.equal(one.scores, two.scores)


def one_object(number: int) -> Objects:
    """Return one object somewhere, of a class that follows from nothing else."""
    drawn = torch.rand(4, generator=torch.Generator().manual_seed(number)).tolist()
    x, y = 60 * drawn[0], 30 * drawn[1]
    return objects_of((x, y, x + 12 + 24 * drawn[2], y + 12 + 20 * drawn[3], 1 + number % 4, 9.0))


@pytest.mark.integration
def test_the_heads_soon_read_the_class_of_new_labels_in_the_maps() -> None:
    student, method = build(TINY), method_of(objective())
    heads = [*student.heads.box_head.parameters(), *student.heads.box_predictor.parameters()]
    optimizer = torch.optim.AdamW([*method.maps.parameters(), *heads], lr=1e-3)

    def logits(numbers: range) -> tuple[Tensor, Tensor]:
        labels = labels_on(CPU, [one_object(number) for number in numbers])
        # What the images show is noise: all that there is to know is in the labels.
        maps = method.maps(some_pyramid(len(numbers), numbers.start), labels, SIZE)
        return student.heads.predict(maps, labels.boxes).logits[:, 0], labels.classes[:, 0]

    for step in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(*logits(range(1000 + 16 * step, 1016 + 16 * step))).backward()
        optimizer.step()
    with torch.no_grad():
        found, classes = logits(range(64))
    assert float((found.argmax(1) == classes).float().mean()) > 0.9
