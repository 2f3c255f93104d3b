"""Which backend runs where."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

import torch

from teachers.sparse.grid import Backend, BackendError
from teachers.sparse.plain import PlainBackend
from teachers.sparse.torchsparse_backend import TorchsparseBackend

BackendName = Literal["auto", "plain", "torchsparse"]

_log = logging.getLogger(__name__)


def choose_backend(name: BackendName, device: torch.device) -> Backend:
    """Return the backend for tensors on `device`; the choice is logged the first time.

    auto: torchsparse on a GPU where it can be imported, else plain
    Raises BackendError where a backend is asked for by name and cannot run.
    """
    return _choose(name, torch.device(device).type)


@cache
def _choose(name: BackendName, device_type: str) -> Backend:
    device = torch.device(device_type)
    plain, torchsparse = PlainBackend(), TorchsparseBackend()
    if name == "plain":
        chosen: Backend = plain
        reason = "as asked"
    elif name == "torchsparse":
        obstacle = torchsparse.obstacle(device)
        if obstacle is not None:
            raise BackendError(f"sparse backend 'torchsparse' cannot run on {device_type}: {obstacle}; or use 'plain'")
        chosen, reason = torchsparse, "as asked"
    elif name == "auto":
        if device_type != "cuda":
            chosen, reason = plain, "the fastest without a GPU"
        else:
            obstacle = torchsparse.obstacle(device)
            chosen = torchsparse if obstacle is None else plain
            reason = "torchsparse is there" if obstacle is None else f"torchsparse cannot run: {obstacle}"
    else:
        raise ValueError(f"Expected backend 'auto', 'plain' or 'torchsparse', got: {name!r}")
    _log.info("sparse backend on %s: %s (%s)", device_type, chosen.name, reason)
    return chosen
