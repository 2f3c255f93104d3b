"""What a student's tasks hang on: `python pipelines/analyse.py attack --checkpoint RUN --lake URL [--against RUN …]`.

    interpret      which branches does the student use, for what: responses, ablation, integrated gradients
    probe          what can a linear layer read off its features that it was not trained on?
    attack         moves the images along the gradient of each loss: which loss breaks which task?
    corruptions    blurs, brightens and fogs the images, and the like: how much is left?

    OUT/metrics.json    every metric of all that was tried, for each run
    OUT/report.html     the same as one page that needs no other file

A split with segments that a student or a teacher was trained on is refused.
"""

from __future__ import annotations

import training.openmp  # isort: skip  # noqa: F401 - before torch

from typing import Annotated

import tyro
from rich.console import Console

from datalake.cli import run_command
from pipelines.analyse_attack import AttackConfig, attack
from pipelines.analyse_corruptions import CorruptionsConfig, corruptions
from pipelines.analyse_interpret import InterpretConfig, interpret
from pipelines.analyse_probe import ProbeConfig, probe
from pipelines.option_ranges import check_options

Command = (
    Annotated[InterpretConfig, tyro.conf.subcommand("interpret")]
    | Annotated[ProbeConfig, tyro.conf.subcommand("probe")]
    | Annotated[AttackConfig, tyro.conf.subcommand("attack")]
    | Annotated[CorruptionsConfig, tyro.conf.subcommand("corruptions")]
)


def run(command: InterpretConfig | ProbeConfig | AttackConfig | CorruptionsConfig, console: Console) -> int:
    """Analyse, and return the exit status 0."""
    check_options(command)
    if isinstance(command, InterpretConfig):
        interpret(command, console)
    elif isinstance(command, ProbeConfig):
        probe(command, console)
    elif isinstance(command, AttackConfig):
        attack(command, console)
    else:
        corruptions(command, console)
    return 0


def main() -> None:
    """Run from the command line."""
    run_command("analyse", Command, run, __doc__)


if __name__ == "__main__":
    main()
