"""What is shown of distillation methods is what they compute."""

from __future__ import annotations

import re
from dataclasses import replace

import fsspec
import numpy as np
import pytest
import torch
from torch import Tensor

from student.detector import Student
from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.fgfi import FGFI, FGFIConfig
from student.distillation.lgd import LGD, LGDConfig
from student.distillation.objective import DetectionObjective, LossWeights
from student.distillation.reviewkd import ABF, ReviewKD, ReviewKDConfig
from student.distillation.trained import TrainedMethods
from student.evaluation.run import Example
from student.report.colors import SERIES, rgb
from student.report.distillation import fgfi_panels, gate_panels, masked_image, scores_of, show_methods
from student.report.page import Page
from tests.student.distillation.taught import WIDE, decided
from tests.student.students import HEIGHT, TINY, WIDTH, objects_of, sample, samples
from training.checkpoint import Checkpoint
from training.fingerprint import Plain

SHAPES = [(HEIGHT >> n, WIDTH >> n) for n in (2, 3, 4, 5)]


@pytest.fixture(scope="module")
def student() -> Student:
    return decided().eval()


@pytest.fixture(scope="module")
def big() -> DetectorTeacher:
    return DetectorTeacher(decided(WIDE, 5))


@pytest.fixture(scope="module")
def checkpoint(student: Student, big: DetectorTeacher) -> Checkpoint:
    """What a run with three methods and two teachers would leave."""
    torch.manual_seed(4)
    detectors = {"big": big, "other": big}
    methods = {
        "fgfi": FGFI(FGFIConfig(), TINY, detectors),
        "reviewkd": ReviewKD(ReviewKDConfig(), TINY, detectors),
        "lgd": LGD(LGDConfig(), TINY, LossWeights()),
    }
    objective = DetectionObjective(student, LossWeights(), methods)
    known: dict[str, Plain] = {f"lgd.{name}": value for name, value in methods["lgd"].fingerprint().items()}
    return Checkpoint(
        fingerprint=known,
        config=TINY.to_json(),
        step=1,
        cursor=0,
        seconds=0.0,
        objective=objective.state_dict(),
        optimizer={},
    )


def examples() -> list[Example]:
    """Return two frames, one of them without objects."""
    nothing = torch.zeros(0)
    return [Example(one, None, {"": nothing}, {}) for one in (sample(0), sample(1, objects_of()))]  # type: ignore[arg-type]


def shown(student: Student, methods: TrainedMethods) -> str:
    page = Page("methods")
    show_methods(page, student, methods, examples())
    page.write("memory://methods/page.html")
    text: str = fsspec.filesystem("memory").cat_file("memory://methods/page.html").decode()
    return text


def test_what_a_run_has_trained_is_read_back(student: Student, big: DetectorTeacher, checkpoint: Checkpoint) -> None:
    methods = TrainedMethods.read(student, checkpoint, {"big": big})
    assert methods.fgfi
    for name, method in (("lgd", methods.lgd), ("reviewkd", methods.reviewkd)):
        assert method is not None
        assert not method.training
        state = method.state_dict()
        assert all(torch.equal(value, checkpoint.objective[f"methods.{name}.{key}"]) for key, value in state.items())
    assert methods.reviewkd is not None
    assert list(methods.reviewkd.fusions) == ["big"]
    alone = TrainedMethods.read(student, checkpoint, {})
    assert alone.lgd is not None
    assert alone.reviewkd is None


def test_each_method_has_its_images(student: Student, big: DetectorTeacher, checkpoint: Checkpoint) -> None:
    page = shown(student, TrainedMethods.read(student, checkpoint, {"big": big}))
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert [caption.partition(" · ")[0] for caption in captions[:5]] == [
        "FGFI, segment_0",
        "FGFI, segment_1",
        "ReviewKD, big, segment_0",
        "ReviewKD, big, segment_1",
        # The other frame has no objects, and so no map.
        "LGD, segment_0",
    ]
    assert captions[5].startswith("Scores that big and the student give to ")
    assert len(captions) == 6


def test_of_a_run_without_methods_nothing_is_shown(student: Student, checkpoint: Checkpoint) -> None:
    plain = {name: value for name, value in checkpoint.objective.items() if name.startswith("student.")}
    methods = TrainedMethods.read(student, replace(checkpoint, objective=plain), {})
    assert "<h2>" not in shown(student, methods)


def test_cells_of_a_mask_are_colored_where_they_lie_the_finest_on_top() -> None:
    cells = [torch.zeros(shape, dtype=torch.bool) for shape in SHAPES]
    cells[0][1, 2] = True  # rows 4 … 8, columns 8 … 12
    cells[3][0, 0] = True  # rows and columns 0 … 32
    image = torch.full((3, HEIGHT, WIDTH), 100, dtype=torch.uint8)
    drawn = masked_image(image, torch.cat([level.flatten() for level in cells]), SHAPES)
    scale = 256 // HEIGHT
    assert drawn.shape == (scale * HEIGHT, scale * WIDTH, 3)
    fine, coarse = (np.round(0.4 * 100 + 0.6 * np.array(rgb(SERIES[level]))) for level in (0, 3))
    expected = np.full((HEIGHT, WIDTH, 3), 40.0)
    expected[:32, :32] = coarse
    expected[4:8, 8:12] = fine
    np.testing.assert_array_equal(drawn[::scale, ::scale], expected)
    np.testing.assert_array_equal(drawn[scale - 1 :: scale, scale - 1 :: scale], expected)


def test_a_frame_without_objects_has_empty_masks(student: Student) -> None:
    full, empty = (fgfi_panels(student, one.sample) for one in examples())
    colored = [np.ptp(panel[60:].astype(int), axis=2).max() for panel in (full, empty)]
    assert colored[0] > 100 > colored[1] + 20


def test_gates_are_drawn_for_all_levels_but_the_deepest(student: Student, big: DetectorTeacher) -> None:
    method = ReviewKD(ReviewKDConfig(), TINY, {"big": big}).eval()
    drawn: list[Tensor] = []
    for name, bias in (("blue", -100.0), ("yellow", 100.0)):
        for module in method.modules():
            if isinstance(module, ABF) and module.gate is not None:
                assert module.gate.bias is not None
                torch.nn.init.zeros_(module.gate.weight)
                torch.nn.init.constant_(module.gate.bias, bias)
        panels = torch.from_numpy(gate_panels(student, method, "big", sample(0)).astype(np.int64))
        drawn.append(panels)
        # The middle of each of three rows, right of the image: viridis's ends.
        rows = [panels[len(panels) * (2 * row + 1) // 6, panels.shape[1] // 2] for row in range(3)]
        dark = [bool(color[0] < 100 and color[2] > 60) for color in rows]
        assert dark == [name == "blue"] * 3
    assert drawn[0].shape == drawn[1].shape


def test_scores_of_a_teacher_that_is_the_student_are_the_students(student: Student) -> None:
    own, theirs = scores_of(student, DetectorTeacher(decided().eval()), samples(2))
    torch.testing.assert_close(own, theirs)
    torch.testing.assert_close(own.sum(1), torch.ones(len(own)))
    kept = student.predict(torch.stack([one.image for one in samples(2)])).proposals
    assert len(own) == sum(map(len, kept))
