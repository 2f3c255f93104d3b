"""Where a job computes."""

from __future__ import annotations

import torch

from teachers.card import TeacherError


def device_of(name: str) -> torch.device:
    """Return the device of a command line's `--device`; `auto` is the GPU if there is one.

    Raises TeacherError where this machine has none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TeacherError(f"--device {name}: {reason}; give cpu, or leave it out") from error
    return device
