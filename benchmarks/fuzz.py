"""Fuzzing of untrusted input: records, lists of sources, the JSON of lakes and of teachers.

    python -m benchmarks.fuzz --target records --seconds 600

Where atheris is installed (`pip install atheris`) it chooses the inputs by what they reach in the code; else valid
inputs are changed at random, JSON by its values. The first input that is neither taken nor refused in one line ends the
run with status 1, and lies in `--out` for `--replay`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

_HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 2**63, 2**200, 1e400, -1e400, float("nan"), "", "x", "\0", "../../x", "/etc", "é"),
    *("\ud800", "a\nb", "9" * 5000, [], {}, [[]], [None], {"": None}, ["../x"], [1, "1"], {"bytes": "1"}),
]
_BYTES = [
    b"\x00" * 4,
    b"\xff" * 4,
    b"\n",
    b"\r",
    b"'",
    b'"',
    b" # ",
    b"[",
    b"*",
    b"?",
    b"\xff\xfe",
    b"\x1f\x8b",
    b"NaN",
    b"[",
]
_DEEP = b"[" * 100_000


@dataclass(frozen=True, kw_only=True)
class Fuzz:
    """Look for inputs that are neither taken nor refused."""

    target: Literal["records", "source_list", "commit", "lake", "card"]
    seconds: float = 600.0
    seed: int = 0
    # A file whose bytes are tried, and nothing else.
    replay: Path | None = None
    out: Path = Path("out/bench/fuzz")


@dataclass(frozen=True)
class Finding:
    """An input that raised what no caller expects."""

    data: bytes
    error: Exception


def search(
    check: Callable[[bytes], None], seeds: list[bytes], seconds: float, seed: int, count: int | None = None
) -> tuple[int, Finding | None]:
    """Try the seeds and changed ones for a while, or `count` of them; return how many were tried, and the finding."""
    random_, give_up, tried = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < give_up and (count is None or tried < count):
        data = seeds[tried] if tried < len(seeds) else mutated(random_, random_.choice(seeds))
        tried += 1
        try:
            check(data)
        except Exception as error:
            return tried, Finding(data, error)
    return tried, None


def mutated(random_: random.Random, data: bytes) -> bytes:
    """Return changed bytes; of JSON mostly its values."""
    for _ in range(random_.choice((1, 1, 1, 2, 4))):
        values = _parsed(data)
        if values is not None and random_.random() < 0.9:
            data = json.dumps(_spoiled(random_, values)).encode()
        else:
            data = _changed(random_, data)
    return data


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data) if data[:1] in (b"{", b"[") else None
    except (ValueError, RecursionError):
        return None


def _spoiled(random_: random.Random, values: Any) -> Any:
    """Return JSON values of which one is replaced, removed, or found twice."""
    if not values or not isinstance(values, dict | list) or random_.random() < 0.1:
        return random_.choice(_HOSTILE)
    if isinstance(values, dict):
        changed: Any = dict(values)
        key: Any = random_.choice(list(values))
    else:
        changed, key = list(values), random_.randrange(len(values))
    choice = random_.random()
    if choice < 0.7:
        changed[key] = _spoiled(random_, values[key])
    elif choice < 0.85:
        del changed[key]
    elif isinstance(changed, dict):
        changed[random_.choice(("x", "../x", "", *values))] = values[key]
    else:
        changed.append(values[key])
    return changed


def _changed(random_: random.Random, data: bytes) -> bytes:
    at = random_.randrange(len(data) + 1)
    length = random_.choice((1, 1, 2, 4, 12, 300))
    return random_.choice(
        (
            data[:at] + random_.choice(_BYTES) + data[at:],
            data[:at] + random_.randbytes(length) + data[at + length :],
            data[:at] + data[at + length :],
            data[:at] + bytes([data[at] ^ 1 << random_.randrange(8)]) + data[at + 1 :] if at < len(data) else data,
            data[:at],
            data[:at] + data[max(0, at - length) :],
            data[:at] + (_DEEP if random_.random() < 0.05 else b"[") + data[at:],
        )
    )


def _search_with_atheris(config: Fuzz) -> None:
    """Fuzz until the time is over or something is found; ends the process."""
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=["datalake", "teachers.card"]):
        target = importlib.import_module("benchmarks.fuzz_targets").TARGETS[config.target]
    corpus = config.out / f"{config.target}-corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        random_ = random.Random(seed)
        return mutated(random_, data)[:size] if random_.random() < 0.5 else bytes(atheris.Mutate(data, size))

    options = [f"-max_total_time={int(config.seconds)}", f"-seed={config.seed + 1}", "-max_len=100000"]
    options.append(f"-artifact_prefix={config.out}/{config.target}-")
    atheris.Setup(["fuzz", *options, str(corpus)], target.check, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    """Run from the command line."""
    config = tyro.cli(Fuzz, description=__doc__)
    config.out.mkdir(parents=True, exist_ok=True)
    if config.replay is None and importlib.util.find_spec("atheris"):
        _search_with_atheris(config)
    target = importlib.import_module("benchmarks.fuzz_targets").TARGETS[config.target]
    if config.replay is not None:
        target.check(config.replay.read_bytes())
        return
    tried, finding = search(target.check, target.seeds(), config.seconds, config.seed)
    print(f"{config.target}: {tried} inputs, {'one finding' if finding else 'nothing found'}")
    if finding:
        path = config.out / f"{config.target}-finding"
        path.write_bytes(finding.data)
        traceback.print_exception(finding.error)
        print(f"its input: {path}")
        sys.exit(1)


if __name__ == "__main__":
    main()
