"""What trunks know of objects: `python pipelines/segment.py --lake URL --runs byol=RUN supervised=RUN --out URL`.

    OUT/metrics.json    every metric with its interval, and how far it is above the baselines
    OUT/report.html     the same, cluster maps, knees and components of six frames, as one page

The features of each cell are clustered, and the clusters compared with panoptic labels: objects in each image (A), all
objects as one mask (B), and groups of classes over the whole set (C). Beside the runs stand a trunk with random
weights, colors and places, equal tiles, the best that a grid of this size can do, and the mean mask of other images.
A run is of pretrain.py or of train.py, such as a student trained with all labels. A split that one has seen is refused.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from datalake.cli import run_command
from datalake.commit import LakeError
from datalake.lake import Lake, open_lake
from datalake.loader import LoaderConfig, SampleStream
from datalake.progress_bar import ProgressBar
from pipelines.data import check_disjoint_splits
from pipelines.device import decoding_threads, device_of
from pipelines.evaluated_frames import check_unseen
from pipelines.option_ranges import check_options
from pipelines.paths import absolute
from pipelines.trunk_weights import read_pretrained
from student.checkpoint import read_student
from student.config import StudentConfig, StudentError
from student.evaluation.bootstrap import PerSegment, mean_per_segment
from student.evaluation.cells import TrunkCells, VitCells, color_and_place, resized, rows_of, standardized
from student.evaluation.class_masks import GROUPS, class_metric, group_truth
from student.evaluation.object_masks import cell_ids, object_truth, overlaps, tiles
from student.evaluation.principal import principal
from student.evaluation.segmentation import (
    ClusterConfig,
    LabelledImage,
    best_rule,
    cluster_images,
    differences,
    knee_metrics,
    measure_cells,
    measure_components,
    object_metrics,
    parts,
    set_metric,
    union_metrics,
    with_intervals,
)
from student.pretraining.vit import VitConfig, load_vit
from student.report.page import Page
from student.report.segmentation import Shown, fill_page, metric_rows
from student.trunk import build_trunk, resolved
from training.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint
from training.run_dir import RunDir
from training.versions import installed_versions

METRICS_FILE, REPORT_FILE = "metrics.json", "report.html"
RANDOM, COLORS, TILES, CEILING, MEAN = "random trunk", "colors and places", "tiles", "grid ceiling", "mean mask"
_PACKAGES = ("classroomnet", "torch", "numpy")
# Pixels of the trunk's input to a side of a cell.
_STRIDE = 4
# Trunks halve images so often.
_MULTIPLE = 32
# Cells that principal components are fitted to.
_FIT_CELLS = 50_000
_AT_ONCE = 8
_DRAWN_FRAMES, _FRAMES_A_DRIVE = 6, 3
# Thresholds of the mean mask that are tried.
_SHARES = np.linspace(0.02, 0.5, 25)


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Cluster the features of trunks and compare the clusters with panoptic labels."""

    # The lake: a local path, s3:// or gs://.
    lake: str
    # Metrics and page go here.
    out: str
    # Runs of pretrain.py or train.py, as NAME=FOLDER; the first one's trunk is that of the random weights.
    runs: tuple[str, ...]
    # The split that is measured on.
    split: str = "val"
    # Another one, from which mean masks, rules and principal components are.
    fit_split: str = "train"
    # So many labelled images of the split, from everywhere in it.
    images: int = 100
    # As many of the other one.
    fit_images: int = 60
    # The lake's snapshot; the newest by default.
    snapshot: int | None = None
    # Cameras whose images are used.
    cameras: tuple[str, ...] = ("FRONT",)
    # Width and height of what the trunks see.
    image_size: tuple[int, int] = (192, 128)
    # Width and height of the labels that IoUs are computed in.
    truth_size: tuple[int, int] = (384, 256)
    # Objects of fewer pixels there count as none.
    least_pixels: int = 100
    # Scale each cell's features to length 1; otherwise they are clustered as they are.
    unit: bool = True
    # How cells are clustered.
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    # Numbers of principal components that cells are reduced to in arms of their own.
    components: tuple[int, ...] = (1, 2, 3, 8, 16)
    # Draws of the bootstrap.
    draws: int = 1000
    # Of images, random weights, clusterings and draws.
    seed: int = 0
    # cpu, cuda, cuda:1 …; by default the GPU if there is one.
    device: str = "auto"


@dataclass(frozen=True, slots=True, eq=False)
class _Features:
    """The cells of what is measured on, float32 [M, h * w, D], and of the other images [F, h * w, D]."""

    rows: Tensor
    fit: Tensor


def segment(config: SegmentConfig, console: Console) -> None:
    """Measure, write metrics and page, and print the table."""
    runs = _named(config.runs)
    lake = open_lake(absolute(config.lake), config.snapshot)
    check_disjoint_splits(lake, config.fit_split, config.split)
    trunks = {name: read_cells(url, lake, config, console) for name, url in runs.items()}
    device = device_of(config.device)
    with ProgressBar(console) as bar:
        images = read_images(lake, config, config.split, config.images, bar)
        others = read_images(lake, config, config.fit_split, config.fit_images, bar)
        order = list(dict.fromkeys(image.segment for image in images))
        grid = config.image_size[1] // _STRIDE, config.image_size[0] // _STRIDE
        first = next(iter(trunks.values()))[1]
        torch.manual_seed(config.seed)
        networks = {name: cells for name, (cells, _, _) in trunks.items()}
        networks[RANDOM] = _cells(build_trunk(first), first)
        measured: dict[str, dict[str, PerSegment]] = {}
        plain: dict[str, dict[str, float]] = {}
        shown: dict[str, Shown] = {}
        total = len(networks) + 1
        for number, (name, features) in enumerate(_features(networks, images, others, grid, config, device)):
            bar.update("cluster", number, total, "features")
            counts = range(1, config.cluster.most + 1)
            found = cluster_images(features.rows, grid, counts, config.cluster, config.seed)
            of_fit = cluster_images(features.fit, grid, counts, config.cluster, config.seed)
            rules = {"2": best_rule(others, of_fit.of(2)), "knee": best_rule(others, of_fit.at_knee())}
            measured[name] = measure_cells(images, features.rows, found, rules, order, config.cluster, config.seed)
            fit = principal(_drawn(features.fit, config.seed))
            dimensions = [count for count in config.components if count < features.rows.shape[-1]]
            measured[name] |= measure_components(
                images, features.rows, fit, dimensions, grid, order, config.cluster, config.seed
            )
            plain[name] = {
                **knee_metrics(images, found),
                "effective_rank": fit.effective_rank,
                **{f"explained/{count}": fit.explained(count) for count in config.components},
            }
            shown[name] = Shown(features.rows, found, grid)
        measured |= _baselines(images, others, grid, order, config)
        bar.update("cluster", total, total, "features")
    metrics = {name: with_intervals(each, config.draws, config.seed) for name, each in measured.items()}
    gains = {
        base: {
            name: differences(each, measured[base], config.draws, config.seed)
            for name, each in measured.items()
            if name in runs
        }
        for base in (RANDOM, COLORS)
    }
    _write(
        config,
        lake,
        {name: (url, trunks[name][2]) for name, url in runs.items()},
        metrics,
        gains,
        plain,
        images,
        shown,
        console,
    )


def _named(runs: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for run in runs:
        name, separator, url = run.partition("=")
        if not (name and separator and url):
            raise StudentError(f"--runs {run}: expected NAME=FOLDER")
        if name in found or name in (RANDOM, COLORS, TILES, CEILING, MEAN):
            raise StudentError(f"--runs {run}: the name is taken")
        found[name] = absolute(url)
    if not found:
        raise StudentError("--runs: name one run at least, as NAME=FOLDER")
    return found


def read_cells(
    url: str, lake: Lake, config: SegmentConfig, console: Console
) -> tuple[TrunkCells | VitCells, StudentConfig, Checkpoint]:
    """Return what makes features in a run, and whose trunk has random weights beside it.

    Raises StudentError where there is neither a trunk nor a transformer, LakeError where it has seen the split.
    """
    checkpoint = load_checkpoint(RunDir(url))
    if checkpoint is None:
        raise StudentError(f"--runs {RunDir(url).place(CHECKPOINT_FILE)}: no such checkpoint")
    if (clips := checkpoint.fingerprint.get("clips")) is None:
        check_unseen(url, checkpoint, lake, config.split, console)
    else:
        console.print(f"{url}: trained on the clips in {clips}; whether it has seen split {config.split} is unknown")
    if (settings := VitConfig.from_json(checkpoint.config)) is not None:
        if any(side % settings.patch for side in config.image_size):
            width, height = config.image_size
            raise StudentError(f"--image-size {width} {height}: {url} has patches of {settings.patch}")
        state = {k.removeprefix("vit."): v for k, v in checkpoint.objective.items() if k.startswith("vit.")}
        student = resolved(StudentConfig())
        assert student.image_mean is not None
        assert student.image_std is not None
        vit = VitCells(load_vit(state, settings, url), student.image_mean, student.image_std, _STRIDE)
        return vit.eval(), student, checkpoint
    if any(name.startswith("trunk.") for name in checkpoint.objective):
        pretrained = read_pretrained(url)
        assert pretrained is not None, "it was there a moment ago"
        trunk, student = build_trunk(pretrained.student), pretrained.student
        trunk.load_state_dict(pretrained.state)
    else:
        whole, _ = read_student(url)
        trunk, student = whole.backbone.trunk, whole.config
    return _cells(trunk, student), student, checkpoint


def _cells(trunk: torch.nn.Module, student: StudentConfig) -> TrunkCells:
    known = resolved(student)
    assert known.image_mean is not None
    assert known.image_std is not None
    return TrunkCells(trunk, known.image_mean, known.image_std, _STRIDE).eval()


def read_images(lake: Lake, config: SegmentConfig, split: str, count: int, bar: ProgressBar) -> list[LabelledImage]:
    """Return labelled images from everywhere in a split, in the order of the lake."""
    settings = LoaderConfig(
        split=split,
        cameras=config.cameras,
        image_size=config.truth_size,
        points=False,
        panoptic=True,
        global_batch=1,
        seed=config.seed,
        threads=decoding_threads(torch.device("cpu")),
    )
    in_order = SampleStream(lake, replace(settings, shuffle=False))
    stream: Iterable = in_order if count >= in_order.epoch_samples else SampleStream(lake, settings)
    found = []
    for sample in stream:
        if sample.panoptic is None:
            continue
        groups = group_truth(sample.panoptic.semantic_class.numpy())
        truth = object_truth(sample.panoptic, config.least_pixels)
        found.append((sample.key, LabelledImage(sample.key.segment, sample.image, truth, groups)))
        bar.update(f"read {split}", len(found), count, "images")
        if len(found) == count:
            break
    if not found:
        raise LakeError(
            f"{lake.store.url}: split {split!r} has no panoptic labels of {', '.join(config.cameras)};"
            " name other cameras or another split"
        )
    found.sort(key=lambda each: (each[0].segment, each[0].timestamp_us, each[0].camera))
    return [image for _, image in found]


def _features(
    networks: Mapping[str, TrunkCells | VitCells],
    images: Sequence[LabelledImage],
    others: Sequence[LabelledImage],
    grid: tuple[int, int],
    config: SegmentConfig,
    device: torch.device,
) -> Iterator[tuple[str, _Features]]:
    """Yield the features of each network, and then colors and places."""
    for name, network in networks.items():
        network.to(device)
        maps = [[network(part.to(device)).cpu() for part in _parts(some, config)] for some in (images, others)]
        rows, fit = (rows_of(torch.cat(each), unit=config.unit) for each in maps)
        if rows.shape[1] != grid[0] * grid[1]:
            raise StudentError(f"{name}: {rows.shape[1]} cells instead of {grid[0] * grid[1]}: another --image-size")
        yield name, _Features(rows, fit)
    plain = [torch.cat([color_and_place(part, grid) for part in _parts(some, config)]) for some in (images, others)]
    rows, fit = (rows_of(each, unit=False) for each in plain)
    yield COLORS, _Features(standardized(rows, fit), standardized(fit, fit))


def _parts(images: Sequence[LabelledImage], config: SegmentConfig) -> Iterator[Tensor]:
    rest = iter(images)
    while some := list(islice(rest, _AT_ONCE)):
        yield resized(torch.stack([image.image for image in some]), config.image_size)


def _drawn(rows: Tensor, seed: int) -> Tensor:
    flat = rows.flatten(0, 1)
    return flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[:_FIT_CELLS]]


def _baselines(
    images: Sequence[LabelledImage],
    others: Sequence[LabelledImage],
    grid: tuple[int, int],
    order: Sequence[str],
    config: SegmentConfig,
) -> dict[str, dict[str, PerSegment]]:
    """Return what equal tiles reach, the truth on the grid, and the mean of other truths."""
    clusters, segments = config.cluster.clusters, [image.segment for image in images]

    def repeated(count: int) -> np.ndarray:
        return np.broadcast_to(tiles(grid, count), (len(images), *grid))

    def rule(count: int) -> str:
        return best_rule(others, np.broadcast_to(tiles(grid, count), (len(others), *grid)))

    def prefixed(name: str, scores: Mapping[str, PerSegment]) -> dict[str, PerSegment]:
        return {f"{name}/{metric}": value for metric, value in scores.items()}

    of_tiles = prefixed(f"A@{clusters}", object_metrics(images, parts(repeated(clusters), 1), order))
    of_tiles |= prefixed("B@2", union_metrics(images, repeated(2), rule(2), order))
    for number, count in enumerate(config.cluster.class_clusters):
        of_tiles[f"C@{count}/miou"] = set_metric(images, repeated(count), count, order, one_to_one=number == 0)

    pooled = [cell_ids(image.truth.ids, grid) for image in images]
    ceiling = prefixed(f"A@{clusters}", object_metrics(images, [ids - 1 for ids in pooled], order))
    ceiling |= {f"A@knee{name.removeprefix(f'A@{clusters}')}": value for name, value in ceiling.items()}
    both = np.stack([(ids > 0).astype(np.int64) for ids in pooled])
    union = union_metrics(images, both, "fewest cells", order)["oracle"]
    ceiling |= {f"B@{name}/{metric}": union for name in ("2", "knee") for metric in ("oracle", "rule")}
    none = len(GROUPS)
    of_cells = np.stack([cell_ids(np.where(image.groups < 0, none, image.groups), grid) for image in images])
    classes = set_metric(images, of_cells, none + 1, order, one_to_one=False)
    ceiling |= {f"C@{count}/miou": classes for count in config.cluster.class_clusters}

    share = np.mean([image.truth.ids > 0 for image in others], 0)
    labelled = [image for image in others if image.truth.count]
    threshold = max(_SHARES, key=lambda least: np.mean([_iou(image, share >= least) for image in labelled] or [0.0]))
    objects = [image for image in images if image.truth.count]
    found = mean_per_segment([i.segment for i in objects], [_iou(i, share >= threshold) for i in objects], order)
    votes = np.stack([np.mean([image.groups == group for image in others], 0) for group in range(none)])
    tables = [_group_table(image, votes.argmax(0)) for image in images]
    mean = {
        "B@2/rule": found,
        f"C@{config.cluster.class_clusters[0]}/miou": class_metric(segments, tables, order, True),
    }
    return {TILES: of_tiles, CEILING: ceiling, MEAN: mean}


def _iou(image: LabelledImage, mask: np.ndarray) -> float:
    return float(overlaps((image.truth.ids > 0).astype(np.int64), 2, mask.astype(np.int64) - 1)[1].max(initial=0))


def _group_table(image: LabelledImage, groups: np.ndarray) -> np.ndarray:
    count, counted = len(GROUPS), image.groups >= 0
    table = np.bincount(image.groups[counted] * count + groups[counted], minlength=count * count)
    return table.reshape(count, count).astype(np.float64)


def drawn_frames(images: Sequence[LabelledImage]) -> list[int]:
    """Return which images are drawn: up to three of a drive, from drives that have the most of them."""
    by_segment: dict[str, list[int]] = {}
    for number, image in enumerate(images):
        by_segment.setdefault(image.segment, []).append(number)
    longest = sorted(by_segment.values(), key=lambda frames: -min(len(frames), _FRAMES_A_DRIVE))
    return [number for frames in longest for number in frames[:_FRAMES_A_DRIVE]][:_DRAWN_FRAMES]


def _write(
    config: SegmentConfig,
    lake: Lake,
    runs: Mapping[str, tuple[str, Checkpoint]],
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]],
    gains: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]],
    plain: Mapping[str, Mapping[str, float]],
    images: Sequence[LabelledImage],
    shown: Mapping[str, Shown],
    console: Console,
) -> None:
    out = RunDir(absolute(config.out))
    settings = {**asdict(config), "lake": lake.store.url, "snapshot": lake.snapshot}
    found = {
        "runs": {name: {"url": url, "step": checkpoint.step} for name, (url, checkpoint) in runs.items()},
        "metrics": metrics,
        "above": gains,
        "features": plain,
        "images": {"count": len(images), "segments": len({image.segment for image in images})},
        "settings": settings,
        "versions": installed_versions(_PACKAGES),
    }
    out.write(METRICS_FILE, (json.dumps(finite(found), indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
    page = Page("ClassroomNet: what features know of objects")
    page.text(f"{len(images)} images of {len({image.segment for image in images})} segments of split {config.split}.")
    fill_page(page, metrics, gains, images, drawn_frames(images), shown, config.cluster.clusters)
    page.heading("Features")
    for name, each in plain.items():
        page.metrics({f"{name}/{metric}": value for metric, value in each.items()})
    page.heading("Settings")
    page.preformatted("\n".join(f"{name:<13}{value}" for name, value in settings.items()))
    page.write(out.place(REPORT_FILE))
    header, rows = metric_rows(metrics, config.cluster.clusters, intervals=False)
    printed = Table(*header)
    for row in rows:
        printed.add_row(*row)
    console.print(printed)
    console.print(f"open {out.place(REPORT_FILE)}", soft_wrap=True, highlight=False)


def finite(value: object) -> object:
    """Return it as JSON has it: null for what has no value, such as the mean over objects of which there are none."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def run(config: SegmentConfig, console: Console) -> int:
    """Measure, and return the exit status 0."""
    check_options(config)
    if config.cluster.clusters > config.cluster.most:
        raise StudentError(
            f"--cluster.clusters {config.cluster.clusters}: expected at most --cluster.most, {config.cluster.most}"
        )
    if any(side % _MULTIPLE for side in config.image_size):
        width, height = config.image_size
        raise StudentError(
            f"--image-size {width} {height}: expected width and height that are multiples of {_MULTIPLE}"
        )
    segment(config, console)
    return 0


def main() -> None:
    """Run from the command line."""
    run_command("segment", SegmentConfig, run, __doc__)


if __name__ == "__main__":
    main()
