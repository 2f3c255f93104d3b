"""All that was found, in at most sixty lines of text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

_LINES = 60
_COLUMNS = {
    "img/s": ("images_per_second", ",.0f"),
    "x13.3": ("of_paper", ".1f"),
    "ms": ("step_ms", ".0f"),
    "teach": ("teachers_ms", ".0f"),
    "fwd": ("forward_ms", ".0f"),
    "bwd": ("backward_ms", ".0f"),
    "opt": ("optimizer_ms", ".0f"),
    "launch": ("launches", ",.0f"),
    "sync": ("syncs", ".0f"),
    "DtoH": ("to_host", ".0f"),
    "gpu ms": ("device_ms", ".0f"),
    "GiB": ("peak_gib", ".1f"),
}


def tables(report: Mapping[str, Any]) -> list[str]:
    """Return the lines: what went wrong, correctness in short, throughput, loading, accuracy."""
    phases: Mapping[str, Any] = report["phases"]
    lines = [_head(report)]
    for name, phase in phases.items():
        lines += _problems(name, phase)
    if "correctness" in phases:
        lines += _correctness(phases["correctness"]["rows"])
    if "throughput" in phases:
        lines += _throughput(phases["throughput"]["rows"])
    if "loading" in phases:
        lines += _loading(phases["loading"]["rows"])
    for name in ("accuracy", "paper"):
        if name in phases:
            lines += _accuracy(phases[name]["rows"])
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], f"… {len(lines) - _LINES + 1} more lines; all is in gpu.json"]
    return lines


def _head(report: Mapping[str, Any]) -> str:
    rows = {row["name"]: row for row in report["phases"].get("card", {}).get("rows", [])}
    machine, versions = rows.get("machine", {}), rows.get("versions", {})
    ceilings = [
        f"{row[key]:.3g} {unit}"
        for row in rows.values()
        for key, unit in (("terabytes_per_second", "TB/s"), ("teraflops", "TFLOP/s"))
        if key in row
    ]
    return (
        f"{machine.get('card', 'unknown card')}, torch {versions.get('torch', '?')}, {', '.join(ceilings)};"
        f" {report['seconds']:.0f} s, status {report['status']}"
    )


def _problems(name: str, phase: Mapping[str, Any]) -> list[str]:
    lines = [f"FAILED {name}: {phase['error']}"[:150]] if phase.get("error") else []
    lines += [f"FAILED {name}: {row['name']}: {row['error']}"[:150] for row in phase["rows"] if row.get("error")]
    skipped = [row["name"] for row in phase["rows"] if row.get("skipped")]
    return lines + ([f"no time in {name}: {', '.join(skipped)}"[:150]] if skipped else [])


def _correctness(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    checks = [row for row in rows if "passed" in row]
    wrong = [row for row in checks if not row["passed"]]
    lines = [f"correctness: {len(checks) - len(wrong)} of {len(checks)} checks passed"]
    lines += [f"  WRONG {row['name']}: {row['value']:.3g} {row['bound']} {row['note']}"[:150] for row in wrong]
    told = [row for row in checks if row["passed"] and row["name"].startswith(_TOLD)]
    return [*lines, ", ".join(f"{row['name']} {row['value']:.2g}" for row in told)[:400]]


# Checks whose metrics are told although they passed.
_TOLD = ("SPVNAS", "lidar features", "mask cells", "gradients", "bfloat16 gradient", "one step twice", "20 steps")


def _throughput(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    timed = [row for row in rows if "images_per_second" in row and row["name"] != "first steps"]
    if not timed:
        return []
    lines = [f"{'training':<34}" + "".join(f"{name:>8}" for name in _COLUMNS)]
    for row in timed:
        values = [format(row[key], form) if key in row else "-" for key, form in _COLUMNS.values()]
        lines.append(f"{row['name'][:34]:<34}" + "".join(f"{value:>8}" for value in values))
    return lines


def _loading(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each kind: its variants side by side."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        if "images_per_second" in row:
            kind, *variant = row["name"].split(", ", 2 if row["name"].startswith(("simulated", "full")) else 1)
            if len(variant) == 2:
                kind, variant = f"{kind}, {variant[0]}", variant[1:]
            groups.setdefault(kind, []).append(f"{variant[0]}: {row['images_per_second']:,.0f}")
    return [f"{kind}, img/s: {'; '.join(told)}"[:200] for kind, told in groups.items()]


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        if "AP50" not in row:
            continue
        told = []
        for label in ("AP50", "AbsRel", "lidar R2", "mask mIoU"):
            values = [value for value in row[label] if value is not None]
            if values:
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                seeds = f" ({' '.join(f'{value:.3f}' for value in values)})" if label == "AP50" else ""
                told.append(f"{label} {statistics.mean(values):.3f}{spread}{seeds}")
        lines.append(f"{row['name']}, {row['steps']} steps of {row['batch']}: {', '.join(told) or 'not finished'}")
    return lines
