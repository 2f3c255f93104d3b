"""Which backend runs where."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

import torch

from teachers.sparse.grid import Backend, BackendError
from teachers.sparse.plain import PlainBackend
from teachers.sparse.torchsparse_backend import TorchsparseBackend
from teachers.sparse.triton_backend import TritonBackend

BackendName = Literal["auto", "plain", "triton", "torchsparse"]

_log = logging.getLogger(__name__)


def choose_backend(name: BackendName, device: torch.device) -> Backend:
    """Return the backend for tensors on `device`; the choice is logged the first time.

    auto: on a GPU triton where it runs, else torchsparse where it does; plain elsewhere
    Raises BackendError where a backend is asked for by name and cannot run.
    """
    return _choose(name, torch.device(device).type)


@cache
def _choose(name: BackendName, device_type: str) -> Backend:
    device = torch.device(device_type)
    known: dict[str, Backend] = {each.name: each for each in (PlainBackend(), TritonBackend(), TorchsparseBackend())}
    if name in known:
        chosen, reason = known[name], "as asked"
        obstacle = chosen.obstacle(device)
        if obstacle is not None:
            raise BackendError(f"sparse backend {name!r} cannot run on {device_type}: {obstacle}; or use 'plain'")
    elif name != "auto":
        raise ValueError(f"Expected backend 'auto', {', '.join(map(repr, known))}, got: {name!r}")
    elif device_type != "cuda":
        chosen, reason = known["plain"], "the fastest without a GPU"
    else:
        obstacles = {fast: known[fast].obstacle(device) for fast in ("triton", "torchsparse")}
        runs = [fast for fast, obstacle in obstacles.items() if obstacle is None]
        chosen = known[runs[0] if runs else "plain"]
        cannot = "; ".join(f"{fast} cannot run: {why}" for fast, why in obstacles.items() if why is not None)
        reason = "it is there" if runs and runs[0] == "triton" else cannot
    _log.info("sparse backend on %s: %s (%s)", device_type, chosen.name, reason)
    return chosen
