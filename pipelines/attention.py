"""What the heads of transformers look at: `python pipelines/attention.py --lake URL --runs dino=RUN --out URL`.

    OUT/metrics.json    how much each head's mask is of labelled objects, beside random weights and random masks
    OUT/report.html     the attention of each head of the last block, their mean and their masks, on six frames

A run is of pretrain.py with `--dino.network vit`. `--weights NAME=FILE` takes published weights, DINO's or timm's,
strictly.
Attention that tells objects apart came of a million images and more (Caron et al. 2021); of ten thousand it is blurred.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import matplotlib as mpl
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from datalake.cli import run_command
from datalake.lake import open_lake
from datalake.progress_bar import ProgressBar
from pipelines.data import check_disjoint_splits
from pipelines.device import device_of
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from pipelines.segment import SegmentConfig, drawn_frames, finite, read_cells, read_images
from student.config import StudentConfig, StudentError
from student.evaluation.attention import HeadScores, best_head, head_scores
from student.evaluation.bootstrap import PerSegment, mean_per_segment
from student.evaluation.cells import VitCells, resized
from student.evaluation.segmentation import LabelledImage, with_intervals
from student.pretraining.vit import Vit, largest_cells, vit_of
from student.report.images import ImageArray, beside
from student.report.page import Page
from student.trunk import resolved
from training.generators import sample_generator
from training.run_dir import RunDir
from training.weights_file import read_weights

METRICS_FILE, REPORT_FILE = "metrics.json", "report.html"
_PANEL_PX = 256
_STRIDE = 4
# Published transformers' normalization of images.
_PUBLISHED = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Draw what the heads of a transformer look at, and compare it with labelled objects."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # Metrics and page go here.
    out: str
    # Runs of pretrain.py, as NAME=FOLDER.
    runs: tuple[str, ...] = ()
    # Files of published weights, as NAME=FILE: DINO's, or of a plain transformer of timm's.
    weights: tuple[str, ...] = ()
    # The split that is measured on.
    split: str = "val"
    # Another one, on which the one head is chosen that is measured alone.
    fit_split: str = "train"
    # So many labelled images of the split.
    images: int = 60
    # As many of the other one.
    fit_images: int = 40
    # The lake's snapshot; the newest by default.
    snapshot: int | None = None
    # Cameras whose images are used.
    cameras: tuple[str, ...] = ("FRONT",)
    # Width and height of what the transformers see: so many patches.
    image_size: tuple[int, int] = (192, 128)
    # Width and height of the labels.
    truth_size: tuple[int, int] = (384, 256)
    # Objects of fewer pixels there count as none.
    least_pixels: int = 100
    # Draws of the bootstrap.
    draws: int = 1000
    # Decides which images, the random weights and masks, and the draws.
    seed: int = 0
    # cpu, cuda, cuda:1 …; by default the GPU if there is one.
    device: str = "auto"


def attention(config: AttentionConfig, console: Console) -> None:
    """Measure, write metrics and page."""
    lake = open_lake(absolute(config.lake), config.snapshot)
    check_disjoint_splits(lake, config.fit_split, config.split)
    reading = SegmentConfig(
        lake=config.lake, out=config.out, runs=config.runs, split=config.split, cameras=config.cameras,
        image_size=config.image_size, truth_size=config.truth_size, least_pixels=config.least_pixels, seed=config.seed,
    )  # fmt: skip
    networks: dict[str, VitCells] = {}
    for name, url in _named("--runs", config.runs).items():
        cells, _, _ = read_cells(absolute(url), lake, reading, console)
        if not isinstance(cells, VitCells):
            raise StudentError(f"--runs {name}={url}: a trunk, which has no attention; give a run of a transformer")
        networks[name] = cells
    for name, url in _named("--weights", config.weights, taken=networks).items():
        vit = vit_of(read_weights(absolute(url), "teacher").tensors, url)
        if any(side % vit.settings.patch for side in config.image_size):
            raise StudentError(f"--weights {name}={url}: patches of {vit.settings.patch}; choose another --image-size")
        networks[name] = VitCells(vit, *_PUBLISHED, _STRIDE).eval()
    if not networks:
        raise StudentError("expected --runs or --weights, as NAME=FOLDER or NAME=FILE")
    torch.manual_seed(config.seed)
    for name, cells in list(networks.items()):
        known = resolved(StudentConfig())
        assert known.image_mean is not None
        assert known.image_std is not None
        untrained = VitCells(Vit(cells.vit.settings), known.image_mean, known.image_std, _STRIDE)
        networks[f"{name}, random weights"] = untrained.eval()
    device, maps, measured = device_of(config.device), {}, {}
    with ProgressBar(console) as bar:
        images = read_images(lake, reading, config.split, config.images, bar)
        others = read_images(lake, reading, config.fit_split, config.fit_images, bar)
        if not any(image.truth.count for image in others):
            raise StudentError(f"--fit-split {config.fit_split}: no labelled object by which a head could be chosen")
        order = list(dict.fromkeys(image.segment for image in images))
        for number, (name, cells) in enumerate(networks.items()):
            bar.update("attention", number, len(networks), "networks")
            cells.to(device)
            maps[name], of_others = (_maps(cells, some, config.image_size, device) for some in (images, others))
            head = best_head(_scores(of_others, others, config.seed))
            measured[name] = _measured(images, _scores(maps[name], images, config.seed), head, order)
        bar.update("attention", len(networks), len(networks), "networks")
    metrics = {name: with_intervals(each, config.draws, config.seed) for name, each in measured.items()}
    _write(config, metrics, images, maps, console)


def _named(option: str, given: Sequence[str], taken: Iterable[str] = ()) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in given:
        name, separator, url = each.partition("=")
        if not (name and separator and url):
            raise StudentError(f"{option} {each}: expected NAME=PLACE")
        if name in found or name in taken:
            raise StudentError(f"{option} {each}: the name is taken")
        found[name] = url
    return found


def _maps(
    cells: VitCells, images: Sequence[LabelledImage], size: tuple[int, int], device: torch.device
) -> list[Tensor]:
    """Return the attention of the last block on each image, float32 [heads, h, w] on the CPU."""
    found = []
    with torch.no_grad():
        for image in images:
            pixels = resized(image.image[None], size).to(device)
            found.append(cells.vit.attention((pixels - cells.mean) / cells.std)[0].cpu())
    return found


def _scores(maps: Sequence[Tensor], images: Sequence[LabelledImage], seed: int) -> list[HeadScores]:
    return [
        head_scores(each, image.truth, sample_generator(seed, 0, number, "masks"))
        for number, (each, image) in enumerate(zip(maps, images, strict=True))
    ]


def _measured(
    images: Sequence[LabelledImage], scores: Sequence[HeadScores], head: int, order: Sequence[str]
) -> dict[str, PerSegment]:
    segments = [image.segment for image, each in zip(images, scores, strict=True) for _ in each.jaccard]
    jaccard = np.concatenate([each.jaccard for each in scores])
    tilings = np.concatenate([each.tilings for each in scores])
    there = [(image.segment, each) for image, each in zip(images, scores, strict=True) if image.truth.count]
    return {
        "best head": mean_per_segment(segments, jaccard.max(1, initial=0).tolist(), order),
        "best random mask": mean_per_segment(segments, tilings.tolist(), order),
        "one head": mean_per_segment(segments, jaccard[:, head].tolist(), order),
        "inside objects": mean_per_segment(
            [segment for segment, _ in there], [float(each.inside.mean()) for _, each in there], order
        ),
    }


def _write(
    config: AttentionConfig,
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]],
    images: Sequence[LabelledImage],
    maps: Mapping[str, Sequence[Tensor]],
    console: Console,
) -> None:
    out = RunDir(absolute(config.out))
    found = {"metrics": metrics, "settings": asdict(config)}
    out.write(METRICS_FILE, (json.dumps(finite(found), indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
    page = Page("ClassroomNet: what heads look at")
    page.text(
        "IoU of objects with the cells that hold 60 % of a head's attention: the best head for each object, the best of"
        " as many random masks of the same areas, and one head that was chosen on other images. Inside objects: the"
        " attention there over their share of the image, 1 where heads know nothing."
    )
    header = ["network", *next(iter(metrics.values()))]
    rows = [
        [name, *(f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]" for m in each.values())]
        for name, each in metrics.items()
    ]
    page.table(rows, header)
    for frame in drawn_frames(images):
        image = images[frame]
        page.heading(f"{image.segment}: {image.truth.count} objects")
        for name, each in maps.items():
            page.image(_drawn(image, each[frame]), f"{name}: each head, their mean, and the cells with 60 % of"
                " each one's attention. One scale for a row: brighter is more.")  # fmt: skip
    page.heading("Settings")
    page.preformatted("\n".join(f"{name:<13}{value}" for name, value in asdict(config).items()))
    page.write(out.place(REPORT_FILE))
    for row in rows:
        told = ", ".join(f"{title} {value}" for title, value in zip(header[1:], row[1:], strict=True))
        console.print(f"{row[0]}: {told}", soft_wrap=True, highlight=False)
    console.print(f"open {out.place(REPORT_FILE)}", soft_wrap=True, highlight=False)


def _drawn(image: LabelledImage, maps: Tensor) -> ImageArray:
    mean = maps.mean(0)
    most = float(torch.cat([maps, mean[None]]).max())

    def colored(values: Tensor) -> ImageArray:
        colors: ImageArray = mpl.colormaps["inferno"](values.double().numpy() / max(most, 1e-12), bytes=True)[..., :3]
        return _grown(colors)

    photo = np.ascontiguousarray(image.image.permute(1, 2, 0).numpy())
    masks = largest_cells(maps).numpy()
    panels = [("image", photo), *((f"head {n + 1}", colored(each)) for n, each in enumerate(maps))]
    panels.append(("mean", colored(mean)))
    panels += [
        (f"60 % of head {n + 1}", _grown(np.repeat((255 * mask[..., None]).astype(np.uint8), 3, 2)))
        for n, mask in enumerate(masks)
    ]
    return beside(panels, columns=2 + len(maps))


def _grown(cells: ImageArray) -> ImageArray:
    factor = max(1, _PANEL_PX // cells.shape[0])
    return cells.repeat(factor, 0).repeat(factor, 1)


def run(config: AttentionConfig, console: Console) -> int:
    """Measure, and return the exit status 0."""
    check_options(config)
    attention(config, console)
    return 0


def main() -> None:
    """Run from the command line."""
    run_command("attention", AttentionConfig, run, __doc__)


if __name__ == "__main__":
    main()
