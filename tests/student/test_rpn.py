"""All images at once: the proposals are torchvision's of each, and the losses the sums over the same anchors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss
from torchvision.models.detection.rpn import RegionProposalNetwork

from datalake.sample import Objects
from student.config import StudentConfig
from student.labels import labels_on
from student.rpn import ProposalNetwork, anchor_generator
from student.sampling import draw_keys, sample
from tests.student.students import HEIGHT, TINY, WIDTH, generators, objects_of

CPU = torch.device("cpu")
SIZE = (HEIGHT, WIDTH)
# Three objects; none; one that no anchor meets well; one outside the image.
LABELS = [
    objects_of((10, 10, 34, 28, 1, 20.0), (50, 8, 60, 32, 2, 9.0), (12, 10, 36, 30, 1, 20.0)),
    objects_of(),
    objects_of((2, 30, 94, 34, 3, 5.0)),
    objects_of((300, 300, 330, 330, 1, 5.0)),
]


def pyramid(images: int = 4) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(images, TINY.width, 16 >> at, 24 >> at, generator=random) for at in range(TINY.levels)]


def build_network(config: StudentConfig = TINY, seed: int = 0) -> ProposalNetwork:
    torch.manual_seed(seed)
    network = ProposalNetwork(config)
    for layer in (network.head.cls_logits, network.head.bbox_pred):
        # Before training all boxes are their anchors, and all as likely.
        layer.weight.data *= 30
    return network


def torchvisions(config: StudentConfig) -> RegionProposalNetwork:
    count = {"training": config.proposals, "testing": config.proposals}
    return RegionProposalNetwork(
        anchor_generator(config),
        None,
        0.7 if config.trunk == "stride1" else 0.5,
        0.3,
        config.rpn_batch,
        0.5,
        {mode: 2 * most for mode, most in count.items()},
        count,
        0.7,
    )


DENSE = replace(TINY, anchors=replace(TINY.anchors, half_cells=True))


def test_at_half_cells_each_level_has_its_anchors_twice() -> None:
    levels = pyramid(1)
    plain, dense = (build_network(config).anchors(levels, SIZE) for config in (TINY, DENSE))
    shifts = torch.cat([torch.full((level.shape[2] * level.shape[3], 1), 2.0 * 2**n) for n, level in enumerate(levels)])
    both = torch.stack([plain.view(-1, 4, 4), plain.view(-1, 4, 4) + shifts[..., None]], 1)
    assert torch.equal(dense, both.view(-1, 4))


@pytest.mark.parametrize(("start", "proposals"), [(TINY, 30), (TINY, 300), (DENSE, 300)])
def test_proposals_of_every_image_are_those_of_torchvision(start: StudentConfig, proposals: int) -> None:
    config, levels = replace(start, proposals=proposals), pyramid()
    network, reference = build_network(config), torchvisions(config)
    with torch.no_grad():
        objectness, deltas = network(levels)
    anchors = network.anchors(levels, SIZE)
    found = network.propose(objectness, deltas, anchors, levels, SIZE)
    boxes = reference.box_coder.decode(deltas.flatten(0, 1), [anchors] * 4).view(4, -1, 4)
    per_cell = 8 if config.anchors.half_cells else 4
    per_level = [per_cell * level.shape[2] * level.shape[3] for level in levels]
    for image in range(4):
        (expected,), _ = reference.filter_proposals(boxes[image, None], objectness[image], [SIZE], per_level)
        assert int(found.valid[image].sum()) == len(expected) > 20
        assert torch.equal(found.boxes[image, : len(expected)], expected)
        assert not bool(found.boxes[image, len(expected) :].any())


def test_what_is_not_a_number_is_not_proposed() -> None:
    network, levels = build_network(), pyramid(2)
    objectness, deltas = (values.detach().clone() for values in network(levels))
    best = objectness[0].argmax()
    objectness[0, best] = torch.nan
    deltas[1, objectness[1].argmax()] = torch.nan
    found = network.propose(objectness, deltas, network.anchors(levels, SIZE), levels, SIZE)
    assert bool(found.boxes.isfinite().all())
    assert bool(found.valid.any(1).all())


def test_anchors_are_made_again_for_images_of_another_size() -> None:
    network = build_network()
    first = network.anchors(pyramid(), SIZE)
    assert network.anchors(pyramid(1), SIZE) is first
    larger = [torch.zeros(1, TINY.width, 32 >> at, 24 >> at) for at in range(TINY.levels)]
    assert len(network.anchors(larger, (2 * HEIGHT, WIDTH))) == 2 * len(first)


def losses_one_by_one(
    network: ProposalNetwork, config: StudentConfig, levels: list[Tensor], keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the losses by torchvision's matching and box coding, image after image, of the anchors that keys draw."""
    objectness, deltas = network(levels)
    anchors, reference = network.anchors(levels, SIZE), torchvisions(config)
    # Of an object that no anchor touches torchvision makes all of them positive.
    touched = [one if float(one.boxes.sum()) < 1000 else objects_of() for one in LABELS]
    labels, boxes = reference.assign_targets_to_anchors([anchors] * 4, [{"boxes": one.boxes} for one in touched])
    drawn = sample(torch.stack(labels).long(), keys, config.rpn_batch, 0.5)
    found, regression = [], []
    for image in range(4):
        chosen = drawn.index[image, drawn.valid[image]]
        found.append(
            binary_cross_entropy_with_logits(objectness[image, chosen], labels[image][chosen], reduction="sum")
        )
        positive = chosen[labels[image][chosen] >= 1]
        (truth,) = reference.box_coder.encode([boxes[image][positive]], [anchors[positive]])
        regression.append(smooth_l1_loss(deltas[image, positive], truth, beta=1 / 9, reduction="sum"))
    return torch.stack(found).sum() / (4 * config.rpn_batch), torch.stack(regression).sum() / (4 * config.rpn_batch)


@pytest.mark.parametrize("rpn_batch", [32, 4000], ids=["a sample", "more than there are anchors"])
def test_losses_and_gradients_are_those_of_the_same_anchors_one_image_after_the_other(rpn_batch: int) -> None:
    config, levels = replace(TINY, rpn_batch=rpn_batch), pyramid()
    network = build_network(config)
    anchors = network.anchors(levels, SIZE)
    keys = draw_keys([len(anchors)] * 4, generators(4), CPU)
    objectness, deltas = network(levels)
    found = network.losses(objectness, deltas, anchors, labels_on(CPU, LABELS), keys)
    expected = losses_one_by_one(network, config, levels, keys)
    weights = list(network.head.parameters())
    for one, other in zip(found, expected, strict=True):
        assert float(one.detach()) == pytest.approx(float(other.detach()), rel=1e-6)
        assert float(one.detach()) > 0
        pairs = (torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) for loss in (one, other))
        for mine, theirs in zip(*pairs, strict=True):
            if theirs is None:
                assert mine is None or not bool(mine.any())
            else:
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "objects", [[objects_of()], [objects_of((300, 300, 330, 330, 1, 5.0))]], ids=["none", "outside"]
)
def test_without_an_object_to_be_found_there_is_no_box_to_learn(objects: list[Objects]) -> None:
    network, levels = build_network(), pyramid(1)
    anchors = network.anchors(levels, SIZE)
    keys = draw_keys([len(anchors)], generators(1), CPU)
    objectness, deltas = network(levels)
    found, boxes = network.losses(objectness, deltas, anchors, labels_on(CPU, objects), keys)
    assert float(boxes.detach()) == 0
    assert float(found.detach()) > 0
