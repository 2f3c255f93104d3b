"""Which files the arguments of a build name."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datalake.commit import LakeError
from datalake.errors import UserError
from datalake.place import file_system
from datalake.retry import Retry, one_line
from datalake.sources.formats import files_in_folder

_MARKS = "*?["
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# A comment behind a path has white space before it: '#' may be part of a name.
_COMMENT = re.compile(r"\s#.*")
# What names of files have, and those of folders have not: a request less for each.
_FILES = (".tfrecord", ".parquet")
# More than any file system or store takes.
_LONGEST = 8192
# What a store's client has not repeated itself is asked again so often.
_LISTING = Retry(attempts=3)


def list_sources(patterns: Sequence[str], refused: dict[str, str] | None = None) -> list[str]:
    """Return the URLs that `patterns` name, each file once, sorted.

    A pattern is a URL, chained ones of fsspec (`tar://*.tfrecord::/data/all.tar`) included, a glob on any fsspec store,
    or a `.txt` file with one URL or glob a line, perhaps in quotes ('#' starts a comment). A folder of components of
    Waymo 2.x stands for its files. Of a file on a disk that is named twice, by '..' or by a symbolic link, the first
    name is taken.

    refused: takes, for each pattern or file that cannot be used, why not, in one line; without it that is raised

    Raises LakeError, or OSError as the store reports it, also where nothing is left.
    """
    urls: set[str] = set()
    failures: dict[str, str] = {}
    for pattern in patterns:
        try:
            names = _read_list(pattern) if pattern.endswith(".txt") and "::" not in pattern else [pattern]
        except (UserError, OSError) as error:
            if refused is None:
                raise
            failures[pattern] = one_line(error)
            continue
        for name in names:
            try:
                found = [file for match in _matches(name) for file in _unfolded(match)]
            except (UserError, OSError) as error:
                if refused is None:
                    raise
                failures[name] = one_line(error)
                continue
            for url in found:
                if url.isascii() or _is_text(url):
                    urls.add(url)
                    continue
                shown = url.encode("utf-8", "backslashreplace").decode()
                failures[shown] = "its name is not UTF-8; rename it"
    if not urls and failures:
        raise LakeError("; ".join(f"{name}: {reason}" for name, reason in list(failures.items())[:3]))
    if failures and refused is None:
        name, reason = next(iter(failures.items()))
        raise LakeError(f"{name}: {reason}")
    if refused is not None:
        refused.update(failures)
    files: dict[str, str] = {}
    for url in sorted(urls):
        files.setdefault(os.path.realpath(url.removeprefix("file://")) if url.startswith("file://") else url, url)
    return sorted(files.values())


def _matches(pattern: str) -> Iterator[str]:
    """Yield the URLs that a URL or a glob names; raises LakeError where it names nothing."""
    if len(pattern) > _LONGEST:
        # To make a glob of it may take hours.
        raise LakeError(f"{pattern[:40]} …: {len(pattern):,} characters are no path; give one path a line")
    inner, chained, outer = pattern.partition("::")
    if chained and "://" not in inner:
        # A file system without a path of its own, such as a cache.
        for match in _matches(outer):
            yield f"{inner}::{match}"
        return
    fs, path = file_system(pattern)
    if any(mark in path for mark in _MARKS):
        found = _LISTING.call(lambda: _glob(fs, path), lambda: f"list {pattern}")
        if not found:
            raise LakeError(f"{pattern}: no file matches; check the path, and quote the glob")
    else:
        found = [path]
    for match in found:
        if chained:
            yield f"{inner.partition('://')[0]}://{match.lstrip('/')}::{outer}"
            continue
        url: str = fs.unstrip_protocol(match)
        if url.startswith("file://"):
            # '..' behind a symbolic link leads elsewhere than it reads.
            plain, shortened = match, os.path.normpath(match)
            url = Path(shortened if os.path.realpath(plain) == os.path.realpath(shortened) else plain).as_posix()
            url = f"file://{url}"
        yield url


def _unfolded(url: str) -> list[str]:
    """Return the files that a folder stands for, as those of Waymo 2.x do; anything else as it is."""
    # A web server is asked for a page that lists a folder, and answers with a file as a whole.
    if "::" in url or url.startswith(("http://", "https://")) or any(part in url for part in _FILES):
        return [url]
    fs, path = file_system(url)
    if not _LISTING.call(lambda: fs.isdir(path), lambda: f"look at {url}"):
        return [url]
    return _LISTING.call(lambda: files_in_folder(url), lambda: f"list {url}") or [url]


def _glob(fs: Any, path: str) -> list[str]:
    """Return the paths that match; a path that exists is meant literally, and so are folders with brackets."""
    if "[" in path:
        if fs.isfile(path):
            return [path]
        parts = path.split("/")
        literal = next((i for i, part in enumerate(parts) if "*" in part or "?" in part), len(parts))
        folder = "/".join(parts[:literal])
        if "[" in folder and fs.isdir(folder):
            path = "/".join([folder.replace("[", "[[]"), *parts[literal:]])
    found: list[str] = fs.glob(path)
    return found


def _read_list(url: str) -> list[str]:
    """Return what a list names; raises LakeError where it is empty, no text, or names another list."""
    fs, path = file_system(url)
    data: bytes = _LISTING.call(lambda: fs.cat_file(path), lambda: f"read {url}")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise LakeError(f"{url}: the list of sources is not {encoding} text ({error}); save it as UTF-8") from error
    if "\0" in text:
        raise LakeError(f"{url}: the list of sources is no text, or UTF-16 without its mark; save it as UTF-8")
    names = [name for line in text.splitlines() if (name := _named_in(line.strip())).strip()]
    if not names:
        raise LakeError(f"{url}: the list of sources is empty")
    if lists := [name for name in names if name.endswith(".txt") and "::" not in name]:
        raise LakeError(f"{url}: a list of sources cannot name another list ({lists[0]})")
    return names


def _named_in(line: str) -> str:
    """Return the path in a line of a list, or nothing."""
    if line[:1] in ("'", '"') and (end := line.find(line[0], 1)) > 0:
        return line[1:end]
    return "" if line.startswith("#") else _COMMENT.sub("", line)


def _is_text(url: str) -> bool:
    try:
        url.encode()
    except UnicodeEncodeError:
        return False
    return True
