"""Sparse convolution on a real scan: the whole lidar teacher, and its layers beside torchsparse's and spconv's.

    python -m benchmarks.sparse_convolution --threads 2

torchsparse and spconv are optional: what cannot be imported is said to be missing. Weights are random: they change
neither the time nor whether two libraries agree.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.peer_spconv import SpconvPeer
from teachers.sparse.choice import BackendName
from teachers.sparse.grid import Backend, Grid
from teachers.sparse.layers import SparseConvolution
from teachers.sparse.plain import PlainBackend
from teachers.sparse.tensor import SparseTensor
from teachers.sparse.torchsparse_backend import TorchsparseBackend
from teachers.sparse.window import Window
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.point_teacher import read_net_config
from teachers.spvnas.scan import Scan
from teachers.spvnas.voxels import voxelize_scans

_DATA = Path(__file__).resolve().parents[2] / "shared/data"
_CPU = torch.device("cpu")
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured.

    scan: a .bin of SemanticKITTI
    net_config: a public net.config of SPVNAS
    output: where the metrics go, as JSON
    repeats: runs of which the fastest counts; each is preceded by one that does not
    layers: whether the layers are measured one by one
    """

    scan: Path = _DATA / "semantickitti_000000.bin"
    net_config: Path = _DATA / "spvnas_65gmacs_net_config.json"
    output: Path = Path("out/sparse_convolution.json")
    threads: int = 2
    repeats: int = 3
    layers: bool = True


@dataclass(frozen=True, kw_only=True)
class NetworkFigures:
    """One library's whole network: seconds a pass, MiB before the first pass and at its peak, difference to plain."""

    backend: str
    first_s: float
    fastest_s: float
    resident_mib: float
    peak_mib: float
    relative_difference: float | None


@dataclass(frozen=True, kw_only=True)
class LayerFigures:
    """One layer: milliseconds of a pass with its map at hand, and the difference to plain, by library."""

    name: str
    kind: str
    stride: int
    rows_in: int
    rows_out: int
    channels_in: int
    channels_out: int
    milliseconds: dict[str, float]
    relative_difference: dict[str, float]


def build(options: Options, backend: BackendName) -> tuple[SPVCNN, tuple[Tensor, Tensor, Tensor]]:
    """Return the network in eval mode and its arguments."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = read_net_config(str(options.net_config))
    network = SPVCNN(config, backend).eval()
    voxels = voxelize_scans([Scan.from_semantickitti(options.scan)], config.voxel_m, _CPU)
    return network, (voxels.features, voxels.positions, voxels.batch)


def seconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Return the time of the first call and of `repeats` more."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def peak_mib() -> float:
    """Return the most memory this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MIB


@torch.no_grad()
def measure_network(options: Options, backend: BackendName) -> tuple[NetworkFigures, Tensor]:
    """Return the metrics of one library and the logits; to be called in a process of its own, for the memory's sake."""
    network, arguments = build(options, backend)
    resident = peak_mib()
    times = seconds(lambda: network(*arguments), options.repeats)
    metrics = NetworkFigures(
        backend=backend,
        first_s=times[0],
        fastest_s=min(times),
        resident_mib=resident,
        peak_mib=peak_mib(),
        relative_difference=None,
    )
    return metrics, network(*arguments).logits


def measure_networks(options: Options, backends: list[BackendName]) -> list[NetworkFigures]:
    """Return the metrics of every library, the first of which is plain."""
    results: list[tuple[NetworkFigures, Tensor]] = []
    for backend in backends:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            results.append(process.submit(measure_network, options, backend).result())
    reference = results[0][1]
    return [replace(metrics, relative_difference=difference(logits, reference)) for metrics, logits in results]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest deviation over the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


class GridPeer:
    """A backend of ours, layer by layer, on the voxels of one pass."""

    def __init__(self, backend: Backend, coordinates: Tensor) -> None:
        self._grid: Grid = backend.open(coordinates)

    def prepare(
        self, features: Tensor, kernel: Tensor, stride: int, window: Window
    ) -> tuple[Callable[[], Tensor], Tensor]:
        """Return what computes the layer, and the order that sorts its rows by position.

        features: [N, in] in ascending order of the voxels, as are the rows of every level here
        """

        def compute() -> Tensor:
            return self._grid.convolve(features, kernel, stride, window)

        rows = len(compute())
        order = self._grid.level(window.output_stride(stride)).rows
        return compute, torch.arange(rows) if order is None else order


def record_layers(options: Options) -> list[tuple[str, SparseConvolution, SparseTensor]]:
    """Return the network's convolutions in the order they run, but for 1³ ones, each with its input."""
    network, arguments = build(options, "plain")
    calls: list[tuple[str, SparseConvolution, SparseTensor]] = []
    for name, module in network.named_modules():
        if isinstance(module, SparseConvolution) and module.window.kind != "pointwise":

            def note(layer: SparseConvolution, inputs: tuple[SparseTensor], name: str = name) -> None:
                calls.append((name.removesuffix(".convolution"), layer, inputs[0]))

            module.register_forward_pre_hook(note)
    network(*arguments)
    return calls


@torch.no_grad()
def measure_layers(options: Options, backends: list[BackendName], spconv: Any) -> list[LayerFigures]:
    """Return the metrics of every layer of size 2 and 3, with the input it has in the network."""
    calls = record_layers(options)
    grid = calls[0][2].grid
    peers: dict[str, GridPeer | SpconvPeer] = {
        name: GridPeer(PlainBackend() if name == "plain" else TorchsparseBackend(), grid.level(1).coordinates)
        for name in backends
    }
    if spconv is not None:
        peers["spconv"] = SpconvPeer(spconv, grid.level)
    metrics: list[LayerFigures] = []
    for name, layer, x in calls:
        milliseconds: dict[str, float] = {}
        outputs: dict[str, Tensor] = {}
        for library, peer in peers.items():
            compute, order = peer.prepare(x.features, layer.kernel, x.stride, layer.window)
            milliseconds[library] = 1000 * min(seconds(compute, options.repeats))
            outputs[library] = compute()[order]
        metrics.append(
            LayerFigures(
                name=name,
                kind=layer.window.kind,
                stride=x.stride,
                rows_in=len(x.features),
                rows_out=len(outputs["plain"]),
                channels_in=layer.kernel.shape[1],
                channels_out=layer.kernel.shape[2],
                milliseconds=milliseconds,
                relative_difference={key: difference(value, outputs["plain"]) for key, value in outputs.items()},
            )
        )
    return metrics


def measure_maps(options: Options) -> float:
    """Return the milliseconds that plain takes to index the voxels and to make every map of the network."""
    _, (_, positions, batch) = build(options, "plain")
    coordinates = torch.cat([batch[:, None], positions], 1)

    def make() -> None:
        grid = PlainBackend().open(coordinates)
        for stride in (1, 2, 4, 8, 16):
            grid.convolve(torch.zeros(len(grid.level(stride)), 1), torch.zeros(27, 1, 1), stride, Window(3))
            if stride < 16:
                grid.convolve(torch.zeros(len(grid.level(stride)), 1), torch.zeros(8, 1, 1), stride, Window(2, 2))

    return 1000 * min(seconds(make, options.repeats))


def show(console: Console, networks: list[NetworkFigures], layers: list[LayerFigures]) -> None:
    """Print both tables."""
    table = Table(
        "library", "first s", "fastest s", "MiB before", "MiB peak", "difference to plain", title="whole network"
    )
    for network in networks:
        metrics = (network.first_s, network.fastest_s, network.resident_mib, network.peak_mib)
        table.add_row(network.backend, *(f"{figure:.2f}" for figure in metrics), f"{network.relative_difference:.0e}")
    console.print(table)
    if not layers:
        return
    libraries = list(layers[0].milliseconds)
    table = Table(
        "layer", "stride", "voxels", "channels", *[f"{name} ms" for name in libraries], title="layer by layer"
    )
    for layer in layers:
        times = [f"{layer.milliseconds[name]:.1f} ({layer.relative_difference[name]:.0e})" for name in libraries]
        shape = (f"{layer.rows_in} → {layer.rows_out}", f"{layer.channels_in} → {layer.channels_out}")
        table.add_row(layer.name, f"{layer.kind} {layer.stride}", *shape, *times)
    table.add_row("all", *[""] * 3, *(f"{sum(x.milliseconds[name] for x in layers):.0f}" for name in libraries))
    console.print(table)


def main(options: Options) -> None:
    """Measure, print, write."""
    console = Console(width=150)
    for path in (options.scan, options.net_config):
        if not path.is_file():
            raise SystemExit(f"no file {path}: name one with --scan and --net-config")
    torch.set_num_threads(options.threads)
    backends: list[BackendName] = ["plain"]
    obstacle = TorchsparseBackend().obstacle(_CPU)
    if obstacle is None:
        backends.append("torchsparse")
    else:
        console.print(f"torchsparse is missing: {obstacle}")
    spconv: Any = None
    try:
        spconv = importlib.import_module("spconv.pytorch")
    except ImportError as error:
        console.print(f"spconv is missing: {error}")

    networks = measure_networks(options, backends)
    layers = measure_layers(options, backends, spconv) if options.layers else []
    maps_ms = measure_maps(options)
    show(console, networks, layers)
    console.print(f"plain, index and all maps: {maps_ms:.0f} ms")
    report = {
        "machine": {"cpus": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()},
        "torch": torch.__version__,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()},
        "networks": [asdict(metrics) for metrics in networks],
        "layers": [asdict(metrics) for metrics in layers],
        "maps_ms": maps_ms,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1))
    console.print(f"written: {options.output}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
