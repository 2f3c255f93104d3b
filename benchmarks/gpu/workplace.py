"""Where the phases of one measurement find what the others made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.sizes import Sizes
from datalake.lake import Lake, open_lake
from tests.support.data import CARRIED

# How the lake's process says that a part is there, and that it is not going to be.
_FAILED = "failed.txt"


@dataclass(frozen=True, slots=True)
class Workplace:
    """A scratch folder, the device and the sizes.

    teachers: name -> folder
    """

    scratch: Path
    dry: bool
    sizes: Sizes
    teachers: dict[str, str]

    @property
    def device(self) -> torch.device:
        """The GPU; in a rehearsal the CPU."""
        return torch.device("cpu" if self.dry else "cuda")

    def mark(self, part: str) -> None:
        """Say that a part of the lakes is there."""
        (self.scratch / f"{part}.done").touch()

    def fail(self, reason: str) -> None:
        """Say that no further part is going to be there."""
        (self.scratch / _FAILED).write_text(reason)

    def lake(self, part: str, wait_s: float) -> Lake:
        """Return the lake `few`, `drives` or `full_size` as soon as it is there.

        Raises TimeoutError where it is not in time, RuntimeError where it is not going to be.
        """
        give_up = time.time() + wait_s
        while not (self.scratch / f"{part}.done").exists():
            if (self.scratch / _FAILED).exists():
                raise RuntimeError(f"no lake {part}: {(self.scratch / _FAILED).read_text()}")
            if time.time() > give_up:
                raise TimeoutError(f"no lake {part} after {wait_s:.0f} s")
            time.sleep(0.2)
        return open_lake(str(self.scratch / part))


def carried_teachers() -> dict[str, str]:
    """Return name -> folder of the teachers that were trained beforehand and carried here."""
    return {name: str(CARRIED / "teachers" / name) for name in ("spvcnn", "mask_rcnn")}
