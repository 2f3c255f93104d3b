"""What each command says of its options with --help."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import tyro.extras

from pipelines.ablate import AblateConfig
from pipelines.analyse import AttackConfig, CorruptionsConfig, InterpretConfig, ProbeConfig
from pipelines.attention import AttentionConfig
from pipelines.autolabel import AutolabelConfig
from pipelines.build_lake import BuildLakeConfig
from pipelines.cache_targets import CacheTargetsConfig
from pipelines.demo import DemoConfig
from pipelines.evaluate import EvaluateConfig
from pipelines.import_teacher import Detector, MaskRcnn, Spvnas
from pipelines.pretrain import PretrainConfig
from pipelines.segment import SegmentConfig
from pipelines.train import TrainConfig
from pipelines.train_teachers import TrainTeachersConfig

COMMANDS: list[Any] = [
    AblateConfig,
    AttentionConfig,
    AttackConfig,
    AutolabelConfig,
    BuildLakeConfig,
    CacheTargetsConfig,
    CorruptionsConfig,
    DemoConfig,
    EvaluateConfig,
    Detector,
    InterpretConfig,
    MaskRcnn,
    Spvnas,
    PretrainConfig,
    SegmentConfig,
    ProbeConfig,
    TrainConfig,
    TrainTeachersConfig,
]


def texts(command: Any) -> dict[str, str]:
    """Return the help of each option, without its default."""
    actions = tyro.extras.get_parser(command)._actions
    return {
        action.option_strings[0]: str(action.help).partition("(default")[0].strip()
        for action in actions
        if action.option_strings and action.dest != "help" and action.help != argparse.SUPPRESS
    }


@pytest.mark.filterwarnings("ignore:get_parser:DeprecationWarning")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_option_is_explained_in_words_of_its_own(command: Any) -> None:
    told = texts(command)
    assert len(told) > 2
    assert [name for name, text in told.items() if len(text) < 8] == []
    groups: dict[str, list[str]] = {}
    for name, text in told.items():
        groups.setdefault(f"{name.rpartition('.')[0]}: {text}", []).append(name)
    assert [names for names in groups.values() if len(names) > 1] == []
