"""An exported student finds what the student finds, without its teachers and without this package."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from student.config import AnchorShapes, StudentConfig, StudentError
from student.detector import Prediction, Student
from student.export import (
    PROGRAM_FILE,
    WEIGHTS_FILE,
    ExportCheck,
    compare,
    export_student,
    load_exported,
    load_program,
)
from student.export_module import ExportableDetector
from tests.student.students import HEIGHT, TAUGHT, TINY, WIDTH, build, samples
from training.run_dir import RunDir

PICTURES = [sample.image for sample in samples(5)]
PAPER = StudentConfig(
    trunk="stride1",
    stages=(8, 8, 8),
    blocks=(1, 1),
    width=8,
    branch_width=8,
    branch_kernel=3,
    head_width=16,
    norm="batch",
    feed="imitation",
    rpn_positive_iou=0.7,
    depth_sees_box=False,
    depth_beta=1.0,
    anchors=AnchorShapes(sizes=((8,), (16,)), ratios=(0.5, 1.0)),
    proposals=400,
)

# What a car has: torch, torchvision and the file. Nothing of ours can be imported.
ALONE = """
import sys
for package in ("student", "teachers", "datalake", "pipelines"):
    sys.modules[package] = None
import torch, torchvision
about = {"about.json": ""}
program = torch.export.load("student.pt2", extra_files=about).module()
torch.save([list(program(image[None])) for image in torch.load("images.pt")], "found.pt")
print(about["about.json"])
"""


@pytest.fixture(scope="module")
def student() -> Student:
    """A student with two branches, whose teachers are not there."""
    return build(TAUGHT).eval()


@pytest.fixture(scope="module")
def exported(student: Student, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportCheck]:
    """The folder it was exported to, and what was said of that."""
    folder = tmp_path_factory.mktemp("exported")
    return folder, export_student(student, str(folder), PICTURES)


def test_the_program_finds_what_the_student_finds(student: Student, exported: tuple[Path, ExportCheck]) -> None:
    folder, check = exported
    others = [sample.image for sample in samples(9)[5:]]
    again = compare(student, load_program(str(folder)), others)
    assert (check.images, again.images) == (5, 4)
    # A student that has learned nothing finds something nearly everywhere.
    assert min(check.detections, again.detections) > 100
    found = sum(len(detections.classes) for detections in student(torch.stack(PICTURES)))
    assert check.metrics()["export/detections"] == found


@pytest.mark.integration
def test_the_program_runs_where_our_package_is_not(
    student: Student, exported: tuple[Path, ExportCheck], tmp_path: Path
) -> None:
    (tmp_path / PROGRAM_FILE).write_bytes((exported[0] / PROGRAM_FILE).read_bytes())
    torch.save(PICTURES, tmp_path / "images.pt")
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for image, found in zip(PICTURES, torch.load(tmp_path / "found.pt"), strict=True):
        (own,) = student(image[None])
        for predicted, truth in zip(found, (own.boxes, own.classes, own.scores, own.depth_m), strict=True):
            torch.testing.assert_close(predicted, truth, rtol=0, atol=1e-3)
    about = json.loads(done.stdout)
    assert about["input"] == f"RGB image, uint8 [1, 3, {HEIGHT}, {WIDTH}]"
    assert about["classes"][1] == "VEHICLE"


def test_a_program_on_another_device_has_nothing_left_on_the_first(exported: tuple[Path, ExportCheck]) -> None:
    # There is no GPU here; `meta` is a device too, on which nothing is computed.
    program = load_program(str(exported[0]), "meta")
    assert isinstance(program, torch.fx.GraphModule)
    tensors = [*program.parameters(), *program.buffers()]
    assert tensors
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    made = [
        torch.device(node.kwargs["device"]).type
        for part in program.modules()
        if isinstance(part, torch.fx.GraphModule)
        for node in part.graph.nodes
        if node.kwargs.get("device") is not None
    ]
    assert made
    assert set(made) == {"meta"}


@pytest.mark.parametrize(("content", "message"), [(None, "no such file; give the folder"), (b"PK", "not an exported")])
def test_what_is_not_a_program_is_refused_in_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / PROGRAM_FILE).write_bytes(content)
    with pytest.raises(StudentError, match=message) as refused:
        load_program(str(tmp_path))
    assert str(refused.value).startswith(str(tmp_path / PROGRAM_FILE))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        pytest.param(replace(TINY, min_score=0.0), 100, id="few boxes"),
        pytest.param(
            replace(TINY, min_score=1e-9, proposals=500, detections=300), 300, id="more than a thousand boxes"
        ),
        pytest.param(PAPER, 100, id="paper"),
        pytest.param(replace(TINY, min_score=0.7), 60, id="some below the least score"),
    ],
)
def test_dropping_late_gives_what_dropping_early_gives(config: StudentConfig, most: int) -> None:
    student = build(config, seed=1).eval()
    for layer in (student.rpn.head.cls_logits, student.heads.box_predictor.cls_score):
        # Before training all scores are alike, and rounding decides which of them are the best.
        layer.weight.data *= 50
    check = compare(student, ExportableDetector(student, (HEIGHT, WIDTH)).eval(), PICTURES)
    assert 0 < check.detections <= most * len(PICTURES)
    assert max(check.box_px, check.score, check.depth_m) < 1e-4


def test_the_weights_make_the_same_student_again(student: Student, exported: tuple[Path, ExportCheck]) -> None:
    again = load_exported(str(exported[0]))
    assert again.config == student.config
    assert not again.training
    one, other = student(torch.stack(PICTURES)), again(torch.stack(PICTURES))
    assert all(
        torch.equal(a.boxes, b.boxes) and torch.equal(a.depth_m, b.depth_m) for a, b in zip(one, other, strict=True)
    )


def test_a_student_on_its_way_elsewhere_is_left_as_it_was() -> None:
    student = build(replace(TINY, min_score=0.999)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    check = export_student(student, "memory://exported/there", PICTURES[:1])
    assert check.detections == 0
    assert student.training
    kernel = student.backbone.trunk.stem[1][0].weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()
    again = load_exported("memory://exported/there/")
    for name, value in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    # It has found nothing, and says so in the same form.
    content = RunDir("memory://exported/there").read(PROGRAM_FILE)
    assert content is not None
    found = torch.export.load(io.BytesIO(content)).module()(PICTURES[0][None])
    assert [list(one.shape) for one in found] == [[0, 4], [0], [0], [0]]
    assert found[1].dtype == torch.int64


class Crooked(Student):
    """Says something else than its heads do."""

    def predict(self, images: Tensor) -> Prediction:
        prediction = super().predict(images)
        for found in prediction.detections:
            found.boxes.add_(0.01)
        return prediction


def test_a_program_that_finds_something_else_is_not_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(StudentError, match=r"boxes differ by up to 0\.01 pixels, scores by "):
        export_student(Crooked(TINY), str(tmp_path), PICTURES[:1])
    assert not list(tmp_path.iterdir())


Told = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda b, c, s, d: (b, c, s - 2e-5, d), r"scores by 2e-05, depths by ", id="scores"),
        pytest.param(lambda b, c, s, d: (b, c, s, d + 0.002), r"depths by 0\.002 m", id="depths"),
        pytest.param(lambda b, c, s, d: (b.flip(0), c.flip(0), s.flip(0), d.flip(0)), "the best first", id="order"),
        pytest.param(lambda b, c, s, d: (b[1:], c[1:], s[1:], d[1:]), "not the same", id="one less"),
        pytest.param(lambda b, c, s, d: (b * torch.nan, c, s, d), "predicts boxes that are not finite", id="NaN boxes"),
        pytest.param(lambda b, c, s, d: (b, c, s * torch.nan, d), "predicts scores that are not", id="NaN scores"),
        pytest.param(lambda b, c, s, d: (b, c, s, d / 0), "predicts depth_m that are not", id="infinite depths"),
    ],
)
def test_a_program_that_says_one_thing_otherwise_is_found_out(
    student: Student, change: Callable[[Tensor, Tensor, Tensor, Tensor], Told], message: str
) -> None:
    program = ExportableDetector(student, (HEIGHT, WIDTH)).eval()
    with pytest.raises(StudentError, match=message):
        compare(student, lambda image: change(*program(image)), PICTURES)


@pytest.mark.parametrize(
    "trunk",
    [
        "tf_efficientnet_lite0",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "resnet50", "convnext_atto")),
    ],
)
def test_a_program_with_a_trunk_of_timms_finds_what_the_student_finds(trunk: str, tmp_path: Path) -> None:
    # A trunk with given weights is one with frozen norms, whose statistics are others than at the start.
    student = build(replace(TINY, trunk=f"timm:{trunk}", trunk_weights_sha256="5" * 64))
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    # Before training all scores are alike, and rounding decides which of them are the best.
    student.heads.box_predictor.cls_score.weight.data *= 50
    student.rpn.head.cls_logits.weight.data *= 50
    check = export_student(student, str(tmp_path), PICTURES[:2])
    assert check.detections > 0
    again = load_exported(str(tmp_path))
    assert again.config == student.config
    one, other = student.eval()(PICTURES[0][None])[0], again(PICTURES[0][None])[0]
    assert torch.equal(one.boxes, other.boxes)


def test_another_students_program_is_told_apart(student: Student) -> None:
    other = ExportableDetector(build(TAUGHT, seed=1).eval(), (HEIGHT, WIDTH)).eval()
    with pytest.raises(StudentError, match="the exported program"):
        compare(student, other, PICTURES)


def test_images_must_divide_into_cells(student: Student, tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="images of 90 x 60 pixels do not divide into cells of 32"):
        export_student(student, str(tmp_path), [torch.zeros(3, 60, 90, dtype=torch.uint8)])
    with pytest.raises(StudentError, match="at least one image"):
        export_student(student, str(tmp_path), [])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "no such file; give the folder that a student was exported to"),
        ("cut off", "not a safetensors file"),
        ("something else", "not a safetensors file"),
        ({}, "the metadata have no student's configuration"),
        (
            {"config": TINY.to_json()},
            "the weights do not fit the configuration beside them: .*backbone.branches.colors",
        ),
        ({"config": "{}"}, "not a student's configuration"),
    ],
)
def test_what_is_not_an_exported_student_is_refused_in_one_line(
    exported: tuple[Path, ExportCheck], tmp_path: Path, damage: dict[str, str] | str | None, message: str
) -> None:
    content = (exported[0] / WEIGHTS_FILE).read_bytes()
    if isinstance(damage, dict):
        (tmp_path / WEIGHTS_FILE).write_bytes(safetensors.torch.save(safetensors.torch.load(content), damage or None))
    elif damage is not None:
        (tmp_path / WEIGHTS_FILE).write_bytes(content[:-5] if damage == "cut off" else damage.encode())
    with pytest.raises(StudentError, match=message) as refused:
        load_exported(str(tmp_path))
    assert str(refused.value).startswith(str(tmp_path / WEIGHTS_FILE))
    assert "\n" not in str(refused.value)
