"""What a student detects and its teachers predict, as layers of a recording of `datalake.view`.

vehicle/<camera>/detections      boxes with class, score and predicted distance
teachers/<name>/<camera>/target  the teacher's map; equal colors mean the same to it
teachers/<name>/<camera>/student with a student that was distilled from it: its prediction from the image alone
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from datalake.lake import Lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.sample import Sample
from datalake.view import Recording, type_colors
from pipelines.device import device_of
from pipelines.paths import absolute
from pipelines.train_config import TrainConfig
from student.checkpoint import read_student
from student.config import StudentError
from student.detections import CLASS_NAMES, Detections
from student.detector import Student
from student.report.images import ImageArray, colors_of_classes, colors_of_features
from teachers.card import TeacherCard
from teachers.load import needs_points
from teachers.loading import open_pool, parse_teachers, read_cards
from teachers.target import Target

# Detections below it are not shown.
_MIN_SCORE = 0.3
# Pixels of a cell of a map.
_CELL_PX = 4
_BATCH = 4


def model_layers(run: str | None, teachers: Sequence[str], split: str) -> Callable[[Recording, Lake], None]:
    """Return a function that logs what the student of a run and the teachers say of a lake's images.

    Images are scaled as the student was trained, without one to the default size. Raises StudentError or TeacherError
    where run or teacher cannot be read.
    """
    named = {name: absolute(url) for name, url in parse_teachers(teachers).items()}
    cards = read_cards(named)
    student, image_size = None, TrainConfig.image_size
    if run is not None:
        student, checkpoint = read_student(absolute(run))
        trained = checkpoint.fingerprint.get("image_size")
        if trained is None:
            raise StudentError(f"{run}: the checkpoint does not say for which image size the student was trained")
        width, height = ast.literal_eval(str(trained))
        image_size = (int(width), int(height))
    config = TrainConfig(lake="", out="").student if student is None else student.config
    grid = config.grid(image_size[1], image_size[0])
    device = device_of("auto")
    pool = open_pool(named, grid, device) if named else None

    def log(recording: Recording, lake: Lake) -> None:
        cameras = tuple(dict.fromkeys(lake.images(["camera"], split).column(0).to_pylist()))
        loader = LoaderConfig(
            split=split,
            cameras=cameras,
            image_size=image_size,
            points=needs_points(cards.values()),
            lasers=("TOP",),
            global_batch=_BATCH,
            shuffle=False,
        )
        batches = SampleStream(lake, loader).loader()
        for batch, targets in pool.follow(batches) if pool else ((batch, {}) for batch in batches):
            outputs = _predict(recording, student, batch)
            for place, sample in enumerate(batch):
                recording.at(sample.key.timestamp_us)
                for name, target in targets.items():
                    predicted = outputs.get(name)
                    _log_map(recording, sample, name, cards[name], target, place, predicted)

    return log


@torch.no_grad()
def _predict(recording: Recording, student: Student | None, batch: Sequence[Sample]) -> dict[str, Tensor]:
    """Log the student's detections, and return its branches' outputs [B, D, h, w]."""
    if student is None:
        return {}
    prediction = student.predict(torch.stack([sample.image for sample in batch]))
    for sample, found in zip(batch, prediction.detections, strict=True):
        recording.at(sample.key.timestamp_us)
        _log_detections(recording, sample, found)
    return dict(prediction.branch_outputs)


def _log_detections(recording: Recording, sample: Sample, found: Detections) -> None:
    assert sample.record_size is not None, "samples of a lake say how large the record's image is"
    height, width = sample.image.shape[1:]
    scale = found.boxes.new_tensor([sample.record_size[0] / width, sample.record_size[1] / height] * 2)
    kept = found.scores >= _MIN_SCORE
    names = [CLASS_NAMES[number] for number in found.classes[kept].tolist()]
    rows = zip(names, found.scores[kept].tolist(), found.depth_m[kept].tolist(), strict=True)
    rerun = recording.rerun
    recording.log(
        f"vehicle/{sample.key.camera}/detections",
        rerun.Boxes2D(
            array=(found.boxes[kept] * scale).numpy(),
            array_format=rerun.Box2DFormat.XYXY,
            colors=type_colors(names),
            labels=[f"{name} {score:.2f} {depth:.0f} m" for name, score, depth in rows],
        ),
    )


def _log_map(
    recording: Recording,
    sample: Sample,
    name: str,
    card: TeacherCard,
    target: Target,
    place: int,
    predicted: Tensor | None,
) -> None:
    entity = f"teachers/{name}/{sample.key.camera}"
    values, valid = target.values[place].cpu(), target.valid[place].cpu()
    guess = None if predicted is None else predicted[place].float().cpu()
    own, students = _colored(card, values, valid, guess)
    recording.log_map(f"{entity}/target", own)
    if students is not None:
        recording.log_map(f"{entity}/student", students)


def _colored(
    card: TeacherCard, values: Tensor, valid: Tensor, guess: Tensor | None
) -> tuple[ImageArray, ImageArray | None]:
    """Return a teacher's map, and the student's prediction of it, in equal colors."""
    if card.kind == "regression":
        own, students = colors_of_features(values, valid, values if guess is None else guess, scale=_CELL_PX)
        return own, None if guess is None else students
    everywhere = torch.ones_like(valid)
    own = colors_of_classes(values[0], valid, class_names=card.class_names, scale=_CELL_PX)
    if guess is None:
        return own, None
    return own, colors_of_classes(guess.argmax(0), everywhere, class_names=card.class_names, scale=_CELL_PX)
