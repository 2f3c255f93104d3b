"""Ends a command in one line where the packages that it is written with are not installed."""

from __future__ import annotations

import sys
from pathlib import Path

from datalake.missing_package import TRAIN, MissingPackageError, need

try:
    need("train", TRAIN)
except MissingPackageError as error:
    print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
    sys.exit(2)
