"""A student by itself: its weights, and a program that finds the same without this package.

    <folder>/student.safetensors     weights; the configuration stands in the file's metadata
    <folder>/student.pt2             `torch.export.load("student.pt2").module()` takes an image uint8 [1, 3, H, W] and
                                     returns boxes [N, 4], classes [N], scores [N] and depth_m [N]

The program needs torch, and torchvision imported for its operators, and no teacher. It is written for a CPU; for a GPU

    from torch.export.passes import move_to_device_pass
    exported = move_to_device_pass(torch.export.load("student.pt2"), "cuda")

moves its weights, constants and whatever it makes as it goes; `exported.module()` then takes images that lie there.
Where this package is, `load_program` does both for a folder at any fsspec URL, and says in one line what is wrong with
it.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from student.config import StudentConfig, StudentError
from student.detections import CLASS_NAMES, Detections
from student.detector import Student
from student.export_module import ExportableDetector
from student.state_dict_adapter import adapt_names
from training.run_dir import RunDir

WEIGHTS_FILE, PROGRAM_FILE = "student.safetensors", "student.pt2"
# In the program's file, for those who have nothing but that.
ABOUT_FILE = "about.json"
_CONFIG = "config"
# Bytes at the beginning of a safetensors file that say how long its header is.
_LENGTH = 8

# Takes an image uint8 [1, 3, H, W], returns boxes [N, 4], classes [N], scores [N] and depth_m [N].
Program = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]

_MOST_BOX_PX, _MOST_SCORE, _MOST_DEPTH_M = 1e-3, 1e-5, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCheck:
    """How far a program's detections are from the student's own, over some images; their classes are the same.

    box_px, score, depth_m: the largest differences
    """

    images: int
    detections: int
    box_px: float
    score: float
    depth_m: float

    def metrics(self) -> dict[str, float]:
        """Return the metrics, all named `export/…`."""
        return {f"export/{name}": float(value) for name, value in asdict(self).items()}


def export_student(student: Student, url: str, images: Sequence[Tensor]) -> ExportCheck:
    """Write the student's weights and its program for images of this size to a folder; return how the program did.

    images: uint8 [3, H, W] each, to compare the program and the student on; some that show objects

    Raises StudentError, and writes nothing, where the program does not find what the student finds.
    """
    if not images:
        raise StudentError("expected at least one image to compare the exported student on")
    # Neither safetensors nor a program's file keeps a layout with the channels last.
    own = copy.deepcopy(student).cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    own.eval()
    with warnings.catch_warnings():
        # torchvision's own nms still asks for its size by the older of two names.
        warnings.filterwarnings("ignore", "`create_unbacked_symint` is deprecated", FutureWarning)
        # torch reads the weights in place, and they are never written.
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        content = _program(own, (images[0].shape[-2], images[0].shape[-1]))
        program = torch.export.load(io.BytesIO(content)).module()
    check = compare(own, program, images)
    folder = RunDir(url)
    folder.write(WEIGHTS_FILE, weights_file(own))
    folder.write(PROGRAM_FILE, content)
    return check


def weights_file(student: Student) -> bytes:
    """Return the content of the file of weights: the same for the same weights and configuration."""
    state = {name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()}
    return safetensors.torch.save(state, {_CONFIG: student.config.to_json()})


class ExportedStudent(NamedTuple):
    """A student on the CPU, in eval mode.

    weights_sha256: hex digest of the file that it is from
    """

    student: Student
    weights_sha256: str


def load_exported(url: str) -> Student:
    """Return the student of `read_exported`."""
    return read_exported(url).student


def read_exported(url: str) -> ExportedStudent:
    """Return the student whose weights are in the folder at `url`, and their file's checksum.

    Raises StudentError where the file is missing or damaged, or its weights are not exactly its configuration's.
    """
    folder = RunDir(url)
    where, content = folder.place(WEIGHTS_FILE), folder.read(WEIGHTS_FILE)
    if content is None:
        raise StudentError(f"{where}: no such file; give the folder that a student was exported to")
    try:
        weights = safetensors.torch.load(content)
        header = json.loads(content[_LENGTH : _LENGTH + int.from_bytes(content[:_LENGTH], "little")])
        student = Student(StudentConfig.from_json(header["__metadata__"][_CONFIG]))
        student.load_state_dict(adapt_names(weights))
    except safetensors.SafetensorError as error:
        raise StudentError(f"{where}: not a safetensors file: {error}") from error
    except StudentError as error:
        raise StudentError(f"{where}: {error}") from error
    except KeyError as error:
        raise StudentError(f"{where}: the metadata have no student's configuration") from error
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        raise StudentError(f"{where}: the weights do not fit the configuration beside them: {problem}") from error
    return ExportedStudent(student.eval(), hashlib.sha256(content).hexdigest())


def load_program(url: str, device: torch.device | str = "cpu") -> Program:
    """Return the program in the folder at `url`, for images uint8 [1, 3, H, W] on `device`.

    For users of this package; those without it load the file by torch alone.

    Raises StudentError where the file is missing or is not a program.
    """
    folder = RunDir(url)
    where, content = folder.place(PROGRAM_FILE), folder.read(PROGRAM_FILE)
    if content is None:
        raise StudentError(f"{where}: no such file; give the folder that a student was exported to")
    try:
        exported = torch.export.load(io.BytesIO(content))
    except Exception as error:  # torch raises whatever it stumbles over: RuntimeError, KeyError, BadZipFile …
        problem = " ".join(str(error).split())
        raise StudentError(f"{where}: not an exported program of this version of torch: {problem}") from error
    program: Program = move_to_device_pass(exported, str(device)).module()
    return program


def compare(student: Student, program: Program, images: Sequence[Tensor]) -> ExportCheck:
    """Return how far the program's detections in images uint8 [3, H, W] are from the student's.

    Raises StudentError where they are not the same: as many, of the same classes, boxes within 0.001 pixels, scores
    within 0.00001 and depths within a millimetre; where the best is not the first; and where a number is not finite.
    """
    detections, box_px, score, depth_m = 0, 0.0, 0.0, 0.0
    for number, image in enumerate(images):
        (own,) = student(image[None])
        with torch.no_grad():
            predicted = Detections(*program(image[None]))
        for whose, one in (("student", own), ("exported program", predicted)):
            if (field := one.not_finite) is not None:
                raise StudentError(f"image {number}: the {whose} predicts {field} that are not finite")
        if (partner := _partners(own, predicted)) is None:
            raise StudentError(
                f"image {number}: the exported program does not find what the student finds: {len(predicted.classes)}"
                f" objects, not the same {len(own.classes)}; where all scores are alike, as before training, rounding"
                " decides: train it further; otherwise this is a fault in student/export_module.py"
            )
        if bool((predicted.scores.diff() > _MOST_SCORE).any()):
            raise StudentError(
                f"image {number}: the exported program does not return the best first; this is a fault in"
                " student/export_module.py"
            )
        detections += len(own.classes)
        box_px = max(box_px, _furthest(own.boxes, predicted.boxes[partner]))
        score = max(score, _furthest(own.scores, predicted.scores[partner]))
        depth_m = max(depth_m, _furthest(own.depth_m, predicted.depth_m[partner]))
    check = ExportCheck(images=len(images), detections=detections, box_px=box_px, score=score, depth_m=depth_m)
    if box_px > _MOST_BOX_PX or score > _MOST_SCORE or depth_m > _MOST_DEPTH_M:
        raise StudentError(
            f"the exported program does not find what the student finds: boxes differ by up to {box_px:.2g} pixels,"
            f" scores by {score:.2g}, depths by {depth_m:.2g} m; this is a fault in student/export_module.py"
        )
    return check


def _program(student: Student, image_size: tuple[int, int]) -> bytes:
    image = torch.zeros(1, 3, *image_size, dtype=torch.uint8)
    with torch.no_grad():
        # Followed operator by operator: dynamo, the other way, is slower and gains nothing here.
        exported = torch.export.export(ExportableDetector(student, image_size).eval(), (image,), strict=False)
    file = io.BytesIO()
    about = {
        "input": f"RGB image, uint8 {list(image.shape)}",
        "outputs": ["boxes [N, 4]: x0, y0, x1, y1 in pixels", "classes [N]", "scores [N]", "depth_m [N]"],
        "classes": CLASS_NAMES,
        "student": json.loads(student.config.to_json()),
    }
    torch.export.save(exported, file, extra_files={ABOUT_FILE: json.dumps(about)})
    return file.getvalue()


def _partners(own: Detections, predicted: Detections) -> Tensor | None:
    """Return int64 [N], which of the program's detections is each of the student's; None where they do not pair up.

    Where scores are equal but for rounding, the order says nothing.
    """
    if len(own.classes) != len(predicted.classes):
        return None
    if not len(own.classes):
        return own.classes
    apart = (own.boxes[:, None] - predicted.boxes).abs().amax(2)
    nearest = apart.masked_fill(own.classes[:, None] != predicted.classes, torch.inf).argmin(1)
    same = torch.equal(own.classes, predicted.classes[nearest]) and len(nearest.unique()) == len(nearest)
    return nearest if same else None


def _furthest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().amax()) if len(one) else 0.0
