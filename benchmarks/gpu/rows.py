"""What a phase found out, written as it goes: whoever is killed later leaves what was there."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Rows:
    """The rows of one phase, in a file of their own; each a name and values that JSON knows.

    deadline: when nothing new is to begin, in seconds since the epoch
    """

    path: Path
    deadline: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return self.deadline - time.time()

    def add(self, name: str, **values: Any) -> None:
        """Append a row and write the file anew."""
        self.rows.append({"name": name, **values})
        partial = self.path.with_suffix(".unfinished")
        partial.write_text(json.dumps(self.rows, indent=1))
        partial.replace(self.path)
        print(f"  {name}: " + ", ".join(f"{key} {_short(value)}" for key, value in values.items()), flush=True)

    def attempt(self, name: str, needs_s: float, make: Callable[[], Mapping[str, Any]]) -> None:
        """Append what `make` returns; that it failed, and how, is a row as well, and so is that the time was up."""
        if self.left_s < needs_s:
            self.add(name, skipped=f"{max(0.0, self.left_s):.0f} s left, needs {needs_s:.0f}")
            return
        began = time.time()
        try:
            values = make()
        except Exception as error:
            print(traceback.format_exc(), flush=True)
            self.add(name, error=f"{type(error).__name__}: {error}"[:300], traceback=traceback.format_exc())
            return
        self.add(name, **values, took_s=round(time.time() - began, 2))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value).splitlines()[-1] if str(value) else ""
    return text[:80]
