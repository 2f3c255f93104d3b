"""Which card and which versions, and the two ceilings of everything else: bytes moved and numbers multiplied."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision

from benchmarks.gpu.rows import Rows
from benchmarks.gpu.workplace import Workplace
from training.versions import installed_versions

_PACKAGES = (
    "torch", "torchvision", "triton", "numpy", "pyarrow", "fsspec", "protobuf", "pillow", "safetensors", "tensorboard",
    "pycocotools", "tyro", "torchsparse", "classroomnet",
)  # fmt: skip


def measure_card(place: Workplace, rows: Rows) -> None:
    """Write down card, driver, versions and flags, and measure a copy and a product."""
    rows.attempt("machine", 0, lambda: _machine(place.device))
    rows.attempt("versions", 0, lambda: installed_versions(_PACKAGES))
    side, size = (256, 1 << 20) if place.dry else (8192, 4 << 30)
    rows.attempt("copy within the device", 2, lambda: _copy(place.device, size))
    rows.attempt(f"bfloat16 product of {side}", 2, lambda: _product(place.device, side))


def _machine(device: torch.device) -> Mapping[str, Any]:
    about: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "torchvision": torchvision.__version__,
        "tf32": {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "cudnn": torch.backends.cudnn.allow_tf32,
        },
    }
    if device.type == "cuda":
        command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        about |= {"card": torch.cuda.get_device_name(), "nvidia_smi": told.stdout.strip()}
        about["capability"] = str(torch.cuda.get_device_capability())
    else:
        about["card"] = f"none; {torch.get_num_threads()} threads of {platform.processor() or platform.machine()}"
    return about


def _copy(device: torch.device, size: int) -> Mapping[str, Any]:
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), device)
    return {"terabytes_per_second": 2 * size / seconds / 1e12, "bytes": size}


def _product(device: torch.device, side: int) -> Mapping[str, Any]:
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return {"teraflops": 2 * side**3 / _seconds(lambda: one @ other, device) / 1e12}


def _seconds(work: Callable[[], Any], device: torch.device, times: int = 10) -> float:
    for _ in range(3):
        work()
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - began) / times


def wait(device: torch.device) -> None:
    """Wait for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
