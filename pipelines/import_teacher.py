"""Make a teacher of published weights: `python pipelines/import_teacher.py spvnas --weights URL --net-config URL …`.

    FOLDER/weights.safetensors, card.json      as `train_teachers.py` writes them

`spvnas`: a checkpoint of SPVNAS or SPVCNN on SemanticKITTI, as its authors publish it, with its net.config. The mean
and variance of its features over the lake go into the card: a student imitates numbers of mean 0 and variance 1.
`mask-rcnn`: torchvision's Mask R-CNN on COCO, a file of torch.save.
`detector`: torchvision's Faster or Mask R-CNN on COCO, a file of torch.save, whose pyramid and boxes are distilled.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

import itertools
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro
from rich.console import Console

from datalake.cli import run_command
from datalake.lake import open_lake
from pipelines.data import Frames
from pipelines.device import device_of
from pipelines.image_size import ImageSize, find_image_size
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from student.detections import CLASS_NAMES
from student.distillation.torchvision_detector import ARCHITECTURE, TorchvisionDetector, TorchvisionNetwork
from teachers.card import DETECTOR, TeacherCard, TeacherError, write_card, write_weights
from teachers.evaluation import measure_statistics
from teachers.mask_rcnn.teacher import MaskRcnnConfig, MaskRcnnTeacher
from teachers.spvnas.checkpoint import read_state_dict
from teachers.spvnas.state_dict_adapter import CheckpointError
from teachers.spvnas.teacher import SpvnasTeacher
from teachers.training import versions

# The statistics are of what its images show.
_CAMERAS = ("FRONT",)


@dataclass(frozen=True, kw_only=True)
class Spvnas:
    """SPVNAS or SPVCNN, with its authors' weights."""

    # The checkpoint (`init`): a path or any fsspec URL.
    weights: str
    # Its net.config.
    net_config: str
    # The teacher's folder: a path or any fsspec URL.
    out: str
    # The lake whose points the statistics are of.
    lake: str
    # The split of the lake that they are of.
    split: str = "train"
    # Samples that they are of.
    samples: int = 128
    # Width and height that images are scaled to; `auto`: as large as the lake's boxes need, see train.py.
    image_size: ImageSize = "auto"
    # Where it runs: cpu, cuda, cuda:1 …; by default on the GPU if there is one.
    device: str = "auto"

    def run(self, console: Console) -> None:
        """Write weights and card."""
        device = device_of(self.device)
        lake = open_lake(absolute(self.lake))
        teacher = SpvnasTeacher.load_public(absolute(self.weights), absolute(self.net_config), device)
        size = find_image_size(self.image_size, lake, _CAMERAS, console)
        frames = Frames(lake=lake, split=self.split, cameras=_CAMERAS, image_size=size, points=True)
        # One by one, from everywhere in the split.
        samples = (sample for (sample,) in frames.stream(1, shuffle=True).loader())
        statistics = measure_statistics(teacher, itertools.islice(samples, self.samples))
        _write(absolute(self.out), teacher, replace(teacher.card, statistics=statistics))


@dataclass(frozen=True, kw_only=True)
class MaskRcnn:
    """torchvision's Mask R-CNN, with its COCO weights."""

    # The weights: a path or any fsspec URL.
    weights: str
    # The teacher's folder: a path or any fsspec URL.
    out: str
    # Which of torchvision's two networks the weights are of.
    variant: Literal["v1", "v2"] = "v2"

    def run(self, _console: Console) -> None:
        """Write weights and card."""
        teacher = MaskRcnnTeacher.load_coco(absolute(self.weights), MaskRcnnConfig.coco(self.variant))
        _write(absolute(self.out), teacher, teacher.card)


@dataclass(frozen=True, kw_only=True)
class Detector:
    """torchvision's Faster or Mask R-CNN on ResNet-50, with its COCO weights, as a detector teacher."""

    # The weights: a path or any fsspec URL.
    weights: str
    # The teacher's folder: a path or any fsspec URL.
    out: str
    # Which of torchvision's networks the weights are of. Masks are left out.
    network: TorchvisionNetwork = "fasterrcnn_resnet50_fpn_v2"

    def run(self, _console: Console) -> None:
        """Write weights and card."""
        url = absolute(self.weights)
        try:
            state = read_state_dict(url)
        except CheckpointError as error:
            raise TeacherError(str(error)) from error
        detector = TorchvisionDetector.load(self.network, state, url)
        card = TeacherCard(
            name="detector",
            kind=DETECTOR,
            architecture=ARCHITECTURE,
            options={"network": detector.name},
            channels=detector.config.width,
            class_names=CLASS_NAMES,
            weights_sha256=write_weights(absolute(self.out), detector.network.state_dict()),
            versions=versions(),
        )
        write_card(absolute(self.out), card)


Command = (
    Annotated[Spvnas, tyro.conf.subcommand("spvnas")]
    | Annotated[MaskRcnn, tyro.conf.subcommand("mask-rcnn")]
    | Annotated[Detector, tyro.conf.subcommand("detector")]
)


def _write(url: str, teacher: SpvnasTeacher | MaskRcnnTeacher, card: TeacherCard) -> None:
    state = {name: value.cpu() for name, value in teacher.network.state_dict().items()}
    write_card(url, replace(card, weights_sha256=write_weights(url, state)))


def run(command: Spvnas | MaskRcnn | Detector, console: Console) -> int:
    """Import, say where to, and return the exit status 0."""
    check_options(command)
    command.run(console)
    console.print(absolute(command.out), soft_wrap=True, highlight=False)
    return 0


def main() -> None:
    """Run from the command line."""
    run_command("import_teacher", Command, run, __doc__)


if __name__ == "__main__":
    main()
