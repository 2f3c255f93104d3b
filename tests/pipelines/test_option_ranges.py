"""Every numeric option has a range, and what is out of it is refused before anything starts."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from rich.console import Console

from datalake.commit import LakeError
from pipelines import ablate, cache_targets, evaluate, import_teacher, pretrain, train, train_teachers
from pipelines.ablate import AblateConfig
from pipelines.analyse import AttackConfig, CorruptionsConfig, InterpretConfig, ProbeConfig
from pipelines.attention import AttentionConfig
from pipelines.autolabel import AutolabelConfig
from pipelines.cache_targets import CacheTargetsConfig
from pipelines.demo import DemoConfig
from pipelines.evaluate import EvaluateConfig
from pipelines.import_teacher import Spvnas
from pipelines.option_ranges import RANGES, check_options
from pipelines.pretrain import PretrainConfig
from pipelines.segment import SegmentConfig
from pipelines.train_config import TrainConfig
from pipelines.train_teachers import TrainTeachersConfig
from student.config import AnchorShapes

PLACES: dict[str, Any] = {"lake": "/nowhere", "out": "/nowhere/out"}
TRAIN = TrainConfig(**PLACES)
WHOLE = [
    DemoConfig(),
    TRAIN,
    TrainTeachersConfig(**PLACES),
    PretrainConfig(**PLACES),
    EvaluateConfig(lake="/nowhere", checkpoint="/nowhere"),
    AttackConfig(lake="/nowhere", checkpoint="/nowhere"),
    AttentionConfig(**PLACES),
    SegmentConfig(runs=("one=/nowhere",), **PLACES),
    InterpretConfig(lake="/nowhere", checkpoint="/nowhere"),
    ProbeConfig(lake="/nowhere", checkpoint="/nowhere"),
    CorruptionsConfig(lake="/nowhere", checkpoint="/nowhere"),
    AblateConfig(train=TRAIN),
    AutolabelConfig(lake="/nowhere", teachers=("masks=/nowhere",), name="some"),
    CacheTargetsConfig(lake="/nowhere", teacher="/nowhere"),
    Spvnas(weights="/nowhere", net_config="/nowhere", **PLACES),
]


def numbers(config: Any) -> Iterator[tuple[str, str]]:
    """Yield class and name of every option of numbers in a configuration and its parts."""
    if isinstance(config, AnchorShapes):
        return  # Fitted by the training, no option; they check themselves.
    hints = get_type_hints(type(config))
    for field in fields(config):
        if is_dataclass(part := getattr(config, field.name)):
            yield from numbers(part)
        elif re.search(r"\b(int|float)\b", re.sub(r"Literal\[.*?\]", "", str(hints[field.name]))):
            yield type(config).__name__, field.name


def test_every_numeric_option_has_a_range_and_nothing_else_has() -> None:
    found = {option for config in WHOLE for option in numbers(config)}
    assert found == {(name, option) for name, options in RANGES.items() for option in options}


@pytest.mark.parametrize("config", WHOLE, ids=lambda config: type(config).__name__)
def test_the_defaults_are_in_their_ranges(config: Any) -> None:
    check_options(config)


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        (train.main, "--loop.checkpoint-every 0", "--loop.checkpoint-every 0: expected at least 1"),
        (train.main, "--seed -1", "--seed -1: expected 0 to"),
        (train.main, "--workers -1", "--workers -1: expected at least 0"),
        (train.main, "--batch 0", "--batch 0: expected at least 1"),
        (train.main, "--image-size 0 0", "--image-size 0: expected 1 to 65535"),
        (train.main, "--optimizer.learning-rate nan", "--optimizer.learning-rate nan: expected more than 0"),
        (train.main, "--weights.depth inf", "--weights.depth inf: expected at least 0"),
        (train.main, "--labelled-fraction 0", "0: expected more than 0 and at most 1"),
        (pretrain.main, "--byol.recent 1", "--byol.recent 1: expected at least 2"),
        (train_teachers.main, "--spvcnn.batch 0", "--spvcnn.batch 0: expected at least 1"),
        (train_teachers.main, "--mask-rcnn.network.score 2", "network.score 2: expected 0 to 1"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_before_anything_starts(
    tmp_path: Path,
    run: Callable[[], None],
    words: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = ["--lake", str(tmp_path / "no_lake"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["program", *places, *words.split()])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda out: evaluate.run(EvaluateConfig(lake="/nowhere", checkpoint="/nowhere", batch=0), out), "--batch 0"),
        (
            lambda out: ablate.run(AblateConfig(train=TRAIN, labelled_fractions=(1.0, math.nan)), out),
            "--labelled-fractions nan",
        ),
        (
            lambda out: cache_targets.run(CacheTargetsConfig(lake="/nowhere", teacher="/nowhere", grid=(0, 3)), out),
            "--grid 0",
        ),
        (
            lambda out: import_teacher.run(Spvnas(weights="/w", net_config="/n", samples=0, **PLACES), out),
            "--samples 0",
        ),
    ],
    ids=["evaluate", "ablate", "cache_targets", "import_teacher"],
)
def test_so_do_the_other_programs(run: Callable[[Console], int], message: str) -> None:
    with pytest.raises(LakeError, match=message):
        run(Console(quiet=True))
