"""Copy a file into an object store: `python docker/publish.py FILE URL`. The bucket is made where there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import fsspec


def publish(source: Path, url: str) -> int:
    """Copy `source` to `url` and return its bytes. Raises OSError where the store then holds something else."""
    store, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    store.makedirs(store._parent(path), exist_ok=True)
    store.put_file(str(source), path)
    expected, stored = source.stat().st_size, store.info(path)["size"]
    if stored != expected:
        raise OSError(f"{url}: Expected {expected:,} bytes, got: {stored:,}; run this again")
    return expected


def main(arguments: list[str]) -> int:
    """Run from the command line; bad input ends in one line and exit status 2."""
    if len(arguments) != 2:
        print("publish: Expected a file and a URL", file=sys.stderr)
        return 2
    source, url = arguments
    try:
        size = publish(Path(source), url)
    except OSError as error:
        print(f"publish: {error}", file=sys.stderr)
        return 2
    print(f"{url}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
