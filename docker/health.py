"""Ask services whether they live: `python docker/health.py URL …`; exit status 0 only if each answers 200 in time."""

from __future__ import annotations

import sys
import urllib.request

_TIMEOUT_S = 5.0


def check(url: str) -> None:
    """Return if `url` answers with status 200. Raises OSError otherwise."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
        if answer.status != 200:
            raise OSError(f"Expected status 200, got: {answer.status}")


def main(urls: list[str]) -> int:
    """Check every URL, say which failed and why, and return the exit status: 2 where none is given."""
    if not urls:
        print("health: Expected at least one URL", file=sys.stderr)
        return 2
    failed = False
    for url in urls:
        try:
            check(url)
        except OSError as error:
            print(f"health: {url}: {error}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
