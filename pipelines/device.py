"""Where a job computes."""

from __future__ import annotations

import os

import torch

from teachers.card import TeacherError

# One thread decodes and scales some 75 images of full size a second (`benchmarks/scale.md`); more than so many wait
# for each other. The process that trains, and what it started, keep some cores.
_BESIDE_A_GPU = 12
_KEPT_CORES = 4


def device_of(name: str) -> torch.device:
    """Return the device of a command line's `--device`; `auto` is the GPU if there is one.

    Raises TeacherError where this machine has none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            # torchsparse 1.4 launches its kernels on the current GPU, wherever the tensors are.
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TeacherError(f"--device {name}: {reason}; give cpu, or leave it out") from error
    return device


def decoding_threads(device: torch.device) -> int:
    """Return how many images a process should decode at once that trains or evaluates on the device.

    A GPU must not wait for images; the cores of a CPU have the network itself to do.
    """
    cores = os.cpu_count() or 1
    return max(1, min(_BESIDE_A_GPU, cores - _KEPT_CORES)) if device.type == "cuda" else 1
