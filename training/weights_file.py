"""Reading a network's weights from a file, wherever it lies."""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from training.errors import TrainingError


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What a file of weights holds.

    tensors: by their names
    sha256: of the file, in hexadecimal digits
    """

    tensors: dict[str, Tensor]
    sha256: str


def read_weights(url: str, entry_of_checkpoints: str = "model") -> Weights:
    """Return the state dict in a file of torch.save or, where the name ends in .safetensors, of safetensors.

    url: a path, or any URL that fsspec opens
    entry_of_checkpoints: the entry of a training's checkpoint that is taken, or else `state_dict`

    Nothing but tensors, and the arguments beside them in a checkpoint, is unpickled. Raises TrainingError where the
    file holds no state dict; errors of the store pass through.
    """
    with fsspec.open(url, "rb") as file:
        content: bytes = file.read()
    loaded = _read_safetensors(content, url) if url.endswith(".safetensors") else _read_torch(content, url)
    for entry in (entry_of_checkpoints, "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(entry), Mapping):
            loaded = loaded[entry]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise TrainingError(f"{url}: expected tensors by name, got: {type(loaded).__name__}")
    return Weights(dict(loaded), hashlib.sha256(content).hexdigest())


def _read_torch(content: bytes, url: str) -> Any:
    try:
        # DINO's checkpoints have its command line in them.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(f"{url} is not a file of torch.save that holds tensors alone: {problem}") from error


def _read_safetensors(content: bytes, url: str) -> Any:
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise TrainingError(f"{url} is not a safetensors file: {error}") from error
