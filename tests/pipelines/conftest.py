"""What the pipelines' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the processes that some tests start: sums depend on how many threads take part.

    And threads that wait for each other on a busy machine take ten times as long as one that waits for nobody.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
