"""Make the credentials that the services share: `python docker/credentials.py FOLDER`. What is there is kept.

    FOLDER/ray_token   the token of Ray's nodes, jobs and dashboard
    FOLDER/aws         the S3 key, as clients read it (AWS_SHARED_CREDENTIALS_FILE)
    FOLDER/s3.json     the same key, as SeaweedFS reads it

Only the owner can read them. They lie in a volume: no file of the project and no layer of an image has a secret.
"""

from __future__ import annotations

import configparser
import io
import json
import os
import secrets
import sys
from pathlib import Path

_PROFILE = "default"


def make_credentials(folder: Path) -> None:
    """Write what is missing in `folder`. Raises OSError or configparser.Error where that cannot be done."""
    _create(folder / "ray_token", secrets.token_hex(32))
    _create(folder / "aws", _profile(access_key=secrets.token_hex(10), secret_key=secrets.token_hex(32)))
    profiles = configparser.ConfigParser(interpolation=None)
    profiles.read_string((folder / "aws").read_text())
    key = profiles[_PROFILE]
    # Always made anew from the one above: the two sides cannot come to differ.
    _replace(folder / "s3.json", _identity(key["aws_access_key_id"], key["aws_secret_access_key"]))


def _profile(*, access_key: str, secret_key: str) -> str:
    profiles = configparser.ConfigParser(interpolation=None)
    profiles[_PROFILE] = {"aws_access_key_id": access_key, "aws_secret_access_key": secret_key}
    text = io.StringIO()
    profiles.write(text)
    return text.getvalue()


def _identity(access_key: str, secret_key: str) -> str:
    identity = {
        "name": "classroomnet",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    return json.dumps({"identities": [identity]}, indent=2)


def _create(path: Path, text: str) -> None:
    if not path.exists():
        _replace(path, text)


def _replace(path: Path, text: str) -> None:
    """Write `path` whole or not at all: a start that is broken off leaves no half a secret."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


def main(arguments: list[str]) -> int:
    """Run from the command line; bad input ends in one line and exit status 2."""
    if len(arguments) != 1:
        print("credentials: Expected one folder", file=sys.stderr)
        return 2
    try:
        make_credentials(Path(arguments[0]))
    except (OSError, configparser.Error, KeyError) as error:
        print(f"credentials: {error}", file=sys.stderr)
        return 2
    print(f"credentials: in {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
