"""The container files, read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
COMPOSE_TEXT = (ROOT / "docker/compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE_TEXT)["services"]
VOLUMES: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)["volumes"]
# A service either stays up, or ends and is waited for.
STAYING = {name for name, service in SERVICES.items() if "restart" in service}


def by_default(text: str) -> str:
    """Return `text` as Compose reads it where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def instructions() -> list[tuple[str, str, str]]:
    """Return (stage, instruction, arguments) of every instruction of the Dockerfile, in order; "" before any stage."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    stage = ""
    found = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            stage = arguments.split(" AS ")[1]
        found.append((stage, name, arguments.strip()))
    return found


def parent_of(stage: str) -> str:
    """Return what `stage` is made from: another stage, or an image."""
    (origin,) = [text for name, kind, text in instructions() if (name, kind) == (stage, "FROM")]
    return origin.split(" AS ")[0]
