"""The most memory that this process has had at a time."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


class PeakMemory:
    """Measures from its making on: what torch has allocated of a GPU, or what is resident of the process."""

    def __init__(self, device: torch.device) -> None:
        """Forget what was before."""
        self._device = device
        self._known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            # Linux: the peak of the resident set starts anew (proc(5)).
            (_PROCESS / "clear_refs").write_text("5")
        except OSError:
            # Some containers do not have it: the peak would be that of whatever the process did before.
            self._known = False

    @property
    def bytes(self) -> int | None:
        """The peak so far, None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        found = re.search(r"^VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text(), re.MULTILINE)
        return int(found.group(1)) << 10 if found and self._known else None
