"""Reading a teacher's published weights."""

from __future__ import annotations

import logging

from torch import Tensor

from teachers.spvnas.state_dict_adapter import CheckpointError
from training.errors import TrainingError
from training.weights_file import read_weights

_log = logging.getLogger(__name__)


def read_state_dict(url: str) -> dict[str, Tensor]:
    """Return the state dict in a file, as `read_weights` does; its sha256 goes to the log.

    Raises CheckpointError where the file holds no state dict; errors of the store pass through.
    """
    try:
        weights = read_weights(url)
    except TrainingError as error:
        raise CheckpointError(str(error)) from error
    _log.info("weights %s: sha256 %s", url, weights.sha256)
    return weights.tensors
