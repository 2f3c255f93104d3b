"""Number formats are what was asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from training.precision import allow_tf32


@pytest.fixture
def _as_it_was() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("_as_it_was")
@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_allowed_everywhere_or_nowhere(allowed: bool) -> None:
    allow_tf32(allowed)
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed
