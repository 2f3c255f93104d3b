"""What a student detects and its teachers predict, as layers of the drawings of `datalake show` and `view`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from rich.console import Console
from torch import Tensor

from datalake.lake import Lake
from datalake.layers import ImageLayers, LayersOf
from datalake.loader import LoaderConfig, SampleStream
from datalake.sample import Sample
from pipelines.device import device_of
from pipelines.image_size import find_image_size, trained_image_size
from pipelines.paths import absolute
from pipelines.train_config import TrainConfig
from student.checkpoint import read_student
from student.config import StudentError
from student.detections import CLASS_NAMES, Detections
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


def model_layers(run: str | None, teachers: Sequence[str], split: str) -> LayersOf:
    """Return a function that asks the student of a run and the teachers about a lake's images of a split.

    Of a teacher there is the map `<name>/target`, and where the student was distilled from it `<name>/student`, its
    prediction from the image alone in equal colors. Images are scaled as for the student's training, without a student
    as one would be trained by default. Raises StudentError or TeacherError where run or teacher cannot be read.
    """
    named = {name: absolute(url) for name, url in parse_teachers(teachers).items()}
    cards = read_cards(named)
    student, trained_size = None, None
    if run is not None:
        student, checkpoint = read_student(absolute(run))
        if (trained_size := trained_image_size(checkpoint)) is None:
            raise StudentError(f"{run}: the checkpoint does not say for which image size the student was trained")
    config = TrainConfig(lake="", out="").student if student is None else student.config

    @torch.no_grad()
    def layers(lake: Lake) -> Iterator[ImageLayers]:
        cameras = tuple(dict.fromkeys(lake.images(["camera"], split).column(0).to_pylist()))
        image_size = trained_size or find_image_size(TrainConfig.image_size, lake, cameras, Console(quiet=True))
        pool = open_pool(named, config.grid(image_size[1], image_size[0]), device_of("auto")) if named else None
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
            images = torch.stack([sample.image for sample in batch])
            prediction = None if student is None else student.predict(images)
            for place, sample in enumerate(batch):
                guesses = {} if prediction is None else prediction.branch_outputs
                maps = _maps(cards, targets, guesses, place)
                yield _of_image(sample, None if prediction is None else prediction.detections[place], maps)

    return layers


def _of_image(sample: Sample, found: Detections | None, maps: dict[str, ImageArray]) -> ImageLayers:
    if found is None:
        return ImageLayers(sample.key, None, (), (), maps)
    assert sample.record_size is not None, "samples of a lake say how large the record's image is"
    height, width = sample.image.shape[1:]
    scale = found.boxes.new_tensor([sample.record_size[0] / width, sample.record_size[1] / height] * 2)
    kept = found.scores >= _MIN_SCORE
    rows = list(
        zip(found.classes[kept].tolist(), found.scores[kept].tolist(), found.depth_m[kept].tolist(), strict=True)
    )
    return ImageLayers(
        key=sample.key,
        boxes=(found.boxes[kept] * scale).numpy(),
        types=tuple(CLASS_NAMES[number] for number, _, _ in rows),
        texts=tuple(f"{score:.2f} {depth:.0f} m" for _, score, depth in rows),
        maps=maps,
    )


def _maps(
    cards: Mapping[str, TeacherCard], targets: Mapping[str, Target], guesses: Mapping[str, Tensor], place: int
) -> dict[str, ImageArray]:
    """Return the teachers' maps of an image of the batch, and the student's predictions of them, in equal colors."""
    maps = {}
    for name, target in targets.items():
        values, valid = target.values[place].cpu(), target.valid[place].cpu()
        guess = guesses[name][place].float().cpu() if name in guesses else None
        if target.kind == "regression":
            own, students = colors_of_features(values, valid, values if guess is None else guess, scale=_CELL_PX)
        else:
            names, everywhere = cards[name].class_names, torch.ones_like(valid)
            own = colors_of_classes(values[0], valid, class_names=names, scale=_CELL_PX)
            shown = values[0] if guess is None else guess.argmax(0)
            students = colors_of_classes(shown, everywhere, class_names=names, scale=_CELL_PX)
        maps[f"{name}/target"] = own
        if guess is not None:
            maps[f"{name}/student"] = students
    return maps
