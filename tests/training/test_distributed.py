"""What one worker of many has to do; what many do together is in test_loop."""

from __future__ import annotations

import pytest
import torch

from training.distributed import Distributed
from training.errors import TrainingError


def test_work_is_cut_evenly_or_not_at_all() -> None:
    assert Distributed(1, 3).share(6, "images") == 2
    assert Distributed(0, 3).share(0, "images") == 0
    with pytest.raises(TrainingError, match="7 labelled images cannot be cut among 3 workers; give a multiple of 3"):
        Distributed(1, 3).share(7, "labelled images")


def test_alone_nothing_has_to_be_exchanged() -> None:
    layer = torch.nn.Linear(1, 1)
    assert Distributed().wrap(layer) is layer
    assert Distributed().mean(torch.tensor([2.0, 0.5])) == [2.0, 0.5]
