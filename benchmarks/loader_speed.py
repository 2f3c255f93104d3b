"""How fast is the loader, with points and labels joined, beside doing nothing but decoding the same images?

    python -m benchmarks.loader_speed

Four sets of images: all five cameras of full-size frames, FRONT alone, all five resized to 384 x 256, and the
384 x 256 images of simulated drives. Contenders on each, in turns, several rounds:

- bare: `decode_jpeg` of bytes that are in memory already (and an antialiased resize, where all resize)
- lake: `SampleStream.loader`, with labels, points and projections joined; and with labels alone
- mosaicml-streaming and webdataset: the same images and arrays, written in their formats, shuffled by their means

each in this process and in DataLoaders with workers; bare and lake also with several decoding threads in this
process. The page cache is warm. A rate is images per second over whole epochs, start and end included; its ratio
is taken to the bare rate of the same round and the same threads, the medians are shown. CPU time counts all threads
and workers: a busy machine hardly changes it.
The command fails where the five cameras' ratio is below `required`.
"""

from __future__ import annotations

import importlib
import json
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import resize

from benchmarks.fullsize import SOURCE, write_fullsize_segment
from benchmarks.samples import read_jpegs, records
from datalake.build import BuildConfig, build_segment
from datalake.lake import Lake, open_lake, prepare_lake, publish_snapshot
from datalake.loader import LoaderConfig, SampleStream
from datalake.plan import plan_segments
from datalake.sample import SampleKey
from datalake.source_list import list_sources
from datalake.sources.formats import index_source
from datalake.sources.frame import ALL_CAMERAS
from datalake.store import Store
from datalake.synthetic import DriveConfig, write_drives

_BATCH = 8
_SMALL = (384, 256)
_FRONT = ("FRONT",)
_BARE_THREADED = "bare, threads"

# Yields the batches of some epochs, given (workers, epochs).
Batches = Callable[[int, int], Iterable[list[Any]]]


@dataclass(frozen=True, kw_only=True)
class LoaderSpeed:
    """Measure loaders against bare decoding.

    frames: full-size frames per segment; simulated drives have twice as many
    streams: chunks that the loader mixes at a time: a multiple of batch x workers, or chunks are read twice; no more,
        as the lake here is small, and all of it would be start-up
    threads: decoding threads, where they are compared
    images: at least so many images are read in a run, in as many epochs as that takes
    peers: folder that benchmarks/peers.txt is installed in
    """

    segments: int = 2
    frames: int = 30
    rounds: int = 3
    workers: tuple[int, ...] = (0, 2)
    streams: int = 16
    threads: int = 2
    images: int = 300
    sets: tuple[str, ...] = ("five", "front", "resized", "simulated")
    required: float = 0.9
    source: str = str(SOURCE)
    peers: Path = Path(sys.prefix) / "peers"
    out: Path = Path("out/bench/loader_speed.json")


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to read a set's images, and what they take on disk in it (None where that is no comparison).

    threaded: it has threads of its own: runs in this process alone, and is compared with bare decoding in threads
    """

    name: str
    batches: Batches
    sample_bytes: float | None
    threaded: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """A contender's metrics over all rounds; `ratio` is the median over rounds, to bare decoding."""

    set: str
    contender: str
    workers: int
    images_per_s: float
    best_images_per_s: float
    ratio: float
    cpu_ms_per_image: float
    sample_bytes: float | None


def build_lake(url: str, sources: list[str], config: BuildConfig) -> Lake:
    """Build a lake in this process, and open it."""
    store = Store(url)
    prepare_lake(store, config.points)
    for plan in plan_segments(map(index_source, list_sources(sources))):
        report = build_segment(plan, url, config)
        if report.outcome != "committed":
            raise SystemExit(f"{plan.segment}: {report.reason}")
    publish_snapshot(store)
    return open_lake(url)


class Images(Dataset[torch.Tensor]):
    """Compressed images in memory, decoded one by one: the least that any loader has to do."""

    def __init__(self, jpegs: list[bytes], size: tuple[int, int] | None) -> None:
        self._jpegs = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
        self._size = size

    def __len__(self) -> int:
        return len(self._jpegs)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = decode_jpeg(self._jpegs[index], ImageReadMode.RGB)
        if self._size is None:
            return image
        return resize(image, [self._size[1], self._size[0]], antialias=True)

    def threaded(self, threads: int, workers: int, epochs: int) -> Iterator[list[torch.Tensor]]:
        """Yield the images in order, decoded by threads of this process (`workers` is 0)."""
        assert workers == 0
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(epochs):
                for start in range(0, len(self), _BATCH):
                    yield list(pool.map(self.__getitem__, range(start, min(start + _BATCH, len(self)))))

    def batches(self, workers: int, epochs: int) -> Iterator[list[torch.Tensor]]:
        """Yield the images in order, by the loop that has the least to do."""
        if workers == 0:
            for _ in range(epochs):
                for start in range(0, len(self), _BATCH):
                    yield [self[index] for index in range(start, min(start + _BATCH, len(self)))]
            return
        loader = DataLoader(self, _BATCH, num_workers=workers, collate_fn=list, persistent_workers=True)
        for _ in range(epochs):
            yield from loader


def loader_config(streams: int, cameras: tuple[str, ...], size: tuple[int, int] | None) -> LoaderConfig:
    """Return what the lake's loader is measured with."""
    return LoaderConfig(cameras=cameras, image_size=size, global_batch=_BATCH, streams=streams)


def lake_batches(lake: Lake, config: LoaderConfig, workers: int, epochs: int) -> Iterable[list[Any]]:
    """Return the batches of the loader that is measured."""
    return SampleStream(lake, config, epochs=epochs).loader(workers)


def order(lake: Lake, config: LoaderConfig) -> list[SampleKey]:
    """Return the images of the loader's first epoch, in its order."""
    return [sample.key for sample in SampleStream(lake, config)]


def find_peer(name: str, folder: Path) -> ModuleType | str:
    """Return the module `benchmarks.<name>`, or how to install what it needs."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        return importlib.import_module(f"benchmarks.{name}")
    except ImportError as error:
        return f"missing ({error.name}): pip install --no-deps --target {folder} -r benchmarks/peers.txt"


def contenders(options: LoaderSpeed, name: str, lake: Lake, folder: Path) -> Iterator[Contender | str]:
    """Yield all that read the set `name`, peers' copies below `folder`; a text for one that is missing."""
    cameras = _FRONT if name in ("front", "simulated") else ALL_CAMERAS
    size = _SMALL if name == "resized" else None
    config = loader_config(options.streams, cameras, size)
    jpegs = read_jpegs(lake, cameras)
    keys = order(lake, config)
    images = Images([jpegs[key] for key in keys], size)
    yield Contender("bare", images.batches, statistics.fmean(len(jpegs[key]) for key in keys))
    stored = sum(file.bytes for commit in lake.commits for file in commit.files.values())
    # The lake of full-size frames keeps all five cameras' images, whatever is read of it.
    per_sample = None if name == "front" else stored / len(jpegs)
    yield Contender("lake", partial(lake_batches, lake, config), per_sample)
    yield Contender("lake, labels alone", partial(lake_batches, lake, replace(config, points=False)), None)
    in_threads = replace(config, threads=options.threads)
    yield Contender(_BARE_THREADED, partial(images.threaded, options.threads), None, threaded=True)
    yield Contender("lake, threads", partial(lake_batches, lake, in_threads), per_sample, threaded=True)
    if name == "resized":
        return
    mosaicml = find_peer("peer_mosaicml", options.peers)
    if isinstance(mosaicml, str):
        yield f"mosaicml-streaming is {mosaicml}"
    else:
        for label, compression in (("mosaicml-streaming", None), ("mosaicml-streaming, zstd", "zstd")):
            target = folder / label
            mosaicml.write(target, records(lake, cameras, jpegs), compression)
            yield Contender(label, partial(mosaicml.batches, target, _BATCH), _folder_bytes(target) / len(jpegs))
    webdataset = find_peer("peer_webdataset", options.peers)
    if isinstance(webdataset, str):
        yield f"webdataset is {webdataset}"
    else:
        target = folder / "webdataset"
        webdataset.write(target, records(lake, cameras, jpegs), len(jpegs))
        yield Contender("webdataset", partial(webdataset.batches, target, _BATCH), _folder_bytes(target) / len(jpegs))


def measure(batches: Batches, workers: int, epochs: int) -> tuple[float, float]:
    """Return (images per second, CPU seconds per image) of a run, from its first call to its last worker's end."""
    start, cpu = time.perf_counter(), _cpu_s()
    count = sum(len(batch) for batch in batches(workers, epochs))
    return count / (time.perf_counter() - start), (_cpu_s() - cpu) / count


def compare(options: LoaderSpeed, name: str, ways: list[Contender], images: int) -> list[Result]:
    """Measure all contenders of a set in turns."""
    epochs = max(1, -(-options.images // images))
    results = []
    for workers in options.workers:
        running = [way for way in ways if workers == 0 or not way.threaded]
        rates: dict[str, list[float]] = {way.name: [] for way in running}
        costs: dict[str, list[float]] = {way.name: [] for way in running}
        for _ in range(options.rounds):
            for way in running:
                rate, cost = measure(way.batches, workers, epochs)
                rates[way.name].append(rate)
                costs[way.name].append(cost)
        for way in running:
            bare = rates[_BARE_THREADED if way.threaded else "bare"]
            ratios = [rate / least for rate, least in zip(rates[way.name], bare, strict=True)]
            results.append(
                Result(
                    set=name,
                    contender=way.name,
                    workers=workers,
                    images_per_s=round(statistics.median(rates[way.name]), 1),
                    best_images_per_s=round(max(rates[way.name]), 1),
                    ratio=round(statistics.median(ratios), 3),
                    cpu_ms_per_image=round(1e3 * min(costs[way.name]), 2),
                    sample_bytes=way.sample_bytes and round(way.sample_bytes),
                )
            )
    return results


def show(results: list[Result], missing: list[str], console: Console) -> None:
    """Print one table, and a line for each peer that is not there."""
    table = Table("set", "workers", "loader", "images/s", "best", "of bare", "CPU ms/image", "kB/sample")
    for column in table.columns[3:]:
        column.justify = "right"
    before = None
    for result in results:
        if before not in (None, (result.set, result.workers)):
            table.add_section()
        before = result.set, result.workers
        table.add_row(
            result.set,
            str(result.workers),
            result.contender,
            f"{result.images_per_s:.0f}",
            f"{result.best_images_per_s:.0f}",
            f"{result.ratio:.2f}",
            f"{result.cpu_ms_per_image:.2f}",
            "-" if result.sample_bytes is None else f"{result.sample_bytes / 1e3:.0f}",
        )
    console.print(table)
    for line in missing:
        console.print(line, soft_wrap=True)


def run(options: LoaderSpeed, folder: Path) -> tuple[list[Result], list[str]]:
    """Write the sources, build the lakes and measure all sets; everything lies below `folder`."""
    lakes: dict[str, Lake] = {}
    results: list[Result] = []
    missing: list[str] = []
    for name in options.sets:
        kind = "simulated" if name == "simulated" else "full-size"
        if kind not in lakes:
            lakes[kind] = build_lake(str(folder / kind / "lake"), _write_sources(options, kind, folder), BuildConfig())
        with tempfile.TemporaryDirectory(dir=folder) as copies:
            found = list(contenders(options, name, lakes[kind], Path(copies)))
            missing += [line for line in found if isinstance(line, str) and line not in missing]
            ways = [way for way in found if isinstance(way, Contender)]
            cameras = 5 if name in ("five", "resized") else 1
            images = sum(commit.frames for commit in lakes[kind].commits) * cameras
            results += compare(options, name, ways, images)
    return results, missing


def main(options: LoaderSpeed) -> int:
    """Measure, print and write; return 1 where the five cameras' ratio is below what is required."""
    torch.set_num_threads(1)
    # The peers' arrays are views of read-only bytes; nothing here writes to them.
    warnings.filterwarnings("ignore", message="The given (buffer|NumPy array) is not writable")
    with tempfile.TemporaryDirectory(prefix="loader-speed-") as folder:
        results, missing = run(options, Path(folder))
    console = Console(width=120)
    show(results, missing, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    values = {"options": asdict(options), "results": [asdict(result) for result in results], "missing": missing}
    options.out.write_text(json.dumps(values, indent=1, default=str) + "\n")
    slow = [
        result
        for result in results
        if (result.set, result.contender) == ("five", "lake") and result.ratio < options.required
    ]
    for result in slow:
        console.print(f"{result.workers} workers: {result.ratio:.2f} of bare decoding, required is {options.required}")
    return 1 if slow else 0


def _write_sources(options: LoaderSpeed, kind: str, folder: Path) -> list[str]:
    """Write the records of the full-size or the simulated segments; return their paths."""
    if kind == "simulated":
        config = DriveConfig(image_width=_SMALL[0], image_height=_SMALL[1])
        return write_drives(
            str(folder / kind), config, segments=options.segments, frames=2 * options.frames, workers=options.segments
        )
    paths = [str(folder / kind / f"{index}.tfrecord") for index in range(options.segments)]
    for index, path in enumerate(paths):
        write_fullsize_segment(path, options.frames, options.source, seed=index)
    return paths


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _cpu_s() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(LoaderSpeed)))
