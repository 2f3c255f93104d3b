"""What every command does around its work: arguments, signals, errors of one line, exit statuses."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import tyro
from rich.console import Console

from datalake.errors import UserError
from datalake.signals import stoppable


def run_command(
    program: str,
    config: Any,
    run: Callable[[Any, Console], int],
    description: str | None,
    *,
    prog: str | None = None,
    prepare: Callable[[list[str]], tuple[list[str], Any]] | None = None,
) -> NoReturn:
    """Read the configuration from the command line, run, and exit with the status that `run` returns.

    Bad input ends in one line on stderr and status 2. SIGTERM and Ctrl-C end in one line and 128 + the signal's number.

    config: a dataclass, or several as tyro's subcommands
    prog: how the command is called, where that is not its file's name
    prepare: from the arguments to those that are read, and the instance of the dataclass that has their defaults
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal of ASCII or Latin-1 shows a question mark for what it does not have.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    arguments = sys.argv[1:]
    try:
        how: dict[str, Any] = {}
        if prepare:
            arguments, how["default"] = prepare(arguments)
        settings = tyro.cli(config, args=arguments, description=description, prog=prog, **how)
        with stoppable(program):
            status = run(settings, Console())
    except (UserError, OSError) as error:
        told = "; ".join([f"{program}: {error}", *getattr(error, "__notes__", ())])
        Console(stderr=True).print(told, soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
    sys.exit(status)
