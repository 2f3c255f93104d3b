"""A teacher on disk: a folder with its weights and the card that describes them.

    <folder>/weights.safetensors
    <folder>/card.json

The folder is a local path or any URL that fsspec opens. Write the weights first: the card names their checksum, so a
folder that was only half replaced is refused when it is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import fsspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from datalake.errors import UserError

CARD_FILE, WEIGHTS_FILE = "card.json", "weights.safetensors"
CARD_VERSION = 1

Kind = Literal["regression", "classification", "detector"]
# Of a detector, whose features and boxes are distilled; it has no map that a branch predicts.
DETECTOR: Kind = "detector"

_log = logging.getLogger(__name__)


class TeacherError(UserError):
    """A teacher, or its prediction, is not what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelStatistics:
    """Mean and variance of each of D channels over the valid cells of a data set."""

    mean: tuple[float, ...]
    variance: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.variance):
            raise TeacherError(f"statistics: {len(self.mean)} means but {len(self.variance)} variances")
        if not all(map(math.isfinite, self.mean)) or not all(0 <= value < math.inf for value in self.variance):
            raise TeacherError("statistics: expected finite means and variances of at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Which frames a teacher was trained on: their labels would leak to a student that is trained on them.

    lake: URL of the lake
    snapshot: number of its snapshot
    segments: split -> names of the segments that were trained on
    image_size: width and height of the images in pixels, None where that is unknown
    """

    lake: str
    snapshot: int
    segments: dict[str, tuple[str, ...]]
    image_size: tuple[int, int] | None = None

    @property
    def all_segments(self) -> frozenset[str]:
        """The names of the segments of every split."""
        return frozenset(name for names in self.segments.values() for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherCard:
    """What a teacher is, what it predicts, and its metrics when it was made.

    kind: `regression` teachers predict D numbers per cell, `classification` teachers one of K classes; a `detector`
        predicts boxes, and its weights lie in a student's file (`student.export`)
    architecture, options: which network, and all that is needed to build it again (plain JSON values)
    channels: D, or K with the background; a detector's in each level of its pyramid
    class_names: K names; of a regression teacher those of its classifier, if it has one
    statistics: by which a regression teacher's values are standardized; None: they are as the network gives them
    metrics: e.g. `mIoU`, `IoU/CAR`, and beside them `trivial/mIoU`, that of always predicting the commonest class
    data: what it was trained on, None where that is unknown (a public checkpoint)
    weights_sha256: hex digest of the file of weights
    versions: package -> version that it was made with
    """

    name: str
    kind: Kind
    architecture: str
    options: dict[str, Any]
    channels: int
    class_names: tuple[str, ...]
    weights_sha256: str
    statistics: ChannelStatistics | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    data: TrainingData | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise TeacherError(f"kind: expected one of {', '.join(get_args(Kind))}, got: {self.kind!r}")
        if self.channels < 1:
            raise TeacherError(f"channels: expected at least 1, got: {self.channels}")
        if self.kind == "classification" and len(self.class_names) != self.channels:
            raise TeacherError(f"expected {self.channels} class names, got: {len(self.class_names)}")
        if self.kind == "classification" and self.statistics is not None:
            raise TeacherError("statistics are of regression teachers; classes have none")
        if self.statistics is not None and len(self.statistics.mean) != self.channels:
            raise TeacherError(f"expected statistics of {self.channels} channels, got: {len(self.statistics.mean)}")


def write_weights(url: str, state: Mapping[str, Tensor]) -> str:
    """Write a network's state dict into the teacher's folder; return the sha256 that its card needs."""
    # safetensors refuses tensors that share memory or are not contiguous.
    own = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    content = safetensors.torch.save(own)
    _write(f"{url.rstrip('/')}/{WEIGHTS_FILE}", content)
    return hashlib.sha256(content).hexdigest()


def write_card(url: str, card: TeacherCard) -> None:
    """Write the card into the teacher's folder, whose weights are there already."""
    values = {"card_version": CARD_VERSION, **asdict(card)}
    _write(f"{url.rstrip('/')}/{CARD_FILE}", (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def read_card(url: str) -> TeacherCard:
    """Return the card in a teacher's folder.

    Raises TeacherError, in one line that names the file, where it is missing, or has an unknown field or an impossible
    value.
    """
    where = f"{url.rstrip('/')}/{CARD_FILE}"
    try:
        values = json.loads(_read(where))
    # The second where it is nested too deeply.
    except (ValueError, RecursionError) as error:
        raise TeacherError(f"{where}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise TeacherError(f"{where}: expected a JSON object, got: {type(values).__name__}")
    if (version := values.pop("card_version", None)) != CARD_VERSION:
        raise TeacherError(
            f"{where}: card version {version!r} found, this program reads {CARD_VERSION}; make the teacher again"
        )
    try:
        if "figures" in values:
            # As version 0.1 called them.
            values["metrics"] = values.pop("figures")
            kinds = {"continuous": "regression", "classes": "classification"}
            values["kind"] = kinds.get(str(values.get("kind")), values.get("kind"))
        statistics, data = values.get("statistics"), values.get("data")
        if statistics is not None:
            _check_fields(ChannelStatistics, statistics, "statistics")
            values["statistics"] = ChannelStatistics(
                mean=tuple(map(float, statistics["mean"])), variance=tuple(map(float, statistics["variance"]))
            )
        if data is not None:
            _check_fields(TrainingData, data, "data")
            segments = {split: tuple(map(str, names)) for split, names in data["segments"].items()}
            values["data"] = TrainingData(
                lake=str(data["lake"]),
                snapshot=int(data["snapshot"]),
                segments=segments,
                image_size=_image_size(data.get("image_size")),
            )
        _check_fields(TeacherCard, values, "card")
        values["channels"] = int(values["channels"])
        values["class_names"] = tuple(map(str, values["class_names"]))
        values["metrics"] = {str(name): float(figure) for name, figure in values.get("metrics", {}).items()}
        for name, kind in (("name", str), ("architecture", str), ("weights_sha256", str), ("options", dict)):
            if not isinstance(values[name], kind):
                raise TeacherError(f"{name}: expected {'text' if kind is str else 'an object'}, got: {values[name]!r}")
        card = TeacherCard(**values)
        # No card is written with numbers that are not finite, nor with text that is not Unicode.
        json.dumps(asdict(card), allow_nan=False, ensure_ascii=False).encode()
    except (TeacherError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise TeacherError(f"{where}: {' '.join(str(error).split())}") from error
    return card


def read_weights(url: str, card: TeacherCard) -> dict[str, Tensor]:
    """Return the state dict in a teacher's folder, on the CPU.

    Raises TeacherError where the file is missing or is not the one that the card was written for.
    """
    where = f"{url.rstrip('/')}/{WEIGHTS_FILE}"
    content = _read(where)
    found = hashlib.sha256(content).hexdigest()
    if found != card.weights_sha256:
        raise TeacherError(
            f"{where}: sha256 {found[:12]}… does not match the card's {card.weights_sha256[:12]}…:"
            " the file is damaged or belongs to another card; copy the whole folder again"
        )
    try:
        state: dict[str, Tensor] = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise TeacherError(f"{where}: not a safetensors file: {error}") from error
    _log.info("teacher %s: weights %s, %d bytes, sha256 %s", card.name, where, len(content), found)
    return state


def _image_size(sides: Any) -> tuple[int, int] | None:
    if sides is None:
        return None
    width, height = map(int, sides)
    return width, height


def _check_fields(kind: type, values: Any, where: str) -> None:
    """Raise TeacherError unless `values` has every required field of the dataclass `kind`, and no other."""
    if not isinstance(values, dict):
        raise TeacherError(f"{where}: expected a JSON object, got: {type(values).__name__}")
    known = {item.name for item in fields(kind)}
    required = {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
    if unknown := sorted(values.keys() - known):
        raise TeacherError(f"{where}: unknown fields {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if missing := sorted(required - values.keys()):
        raise TeacherError(f"{where}: fields are missing: {', '.join(missing)}")


def _read(where: str) -> bytes:
    try:
        with fsspec.open(where, "rb") as file:
            return bytes(file.read())
    except FileNotFoundError as error:
        raise TeacherError(f"{where}: no such file; is this the folder of a teacher?") from error


def _write(where: str, content: bytes) -> None:
    with fsspec.open(where, "wb", auto_mkdir=True) as file:
        file.write(content)
