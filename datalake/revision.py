"""Whether a committed segment is what its sources give now, and whether what they give may supersede it."""

from __future__ import annotations

from datalake.commit import Commit, SourceFile
from datalake.sources.source import SegmentPlan


def is_built(plan: SegmentPlan, commit: Commit) -> bool:
    """Return whether the commit holds what the plan's sources hold.

    A file may lie elsewhere by now: its records count, not its name or time. Of a commit that has quarantined anything
    also the time counts, where the name is the same: a damaged record states the checksum of the sound one.
    """
    if _contents(plan.sources, commit) != _contents(commit.sources, commit):
        return False
    versions = {source.uri: source.version for source in plan.sources}
    changed = any(versions.get(source.uri, source.version) != source.version for source in commit.sources)
    return not (commit.quarantined and changed)


def obstacle(plan: SegmentPlan, commit: Commit, cameras: tuple[str, ...]) -> str:
    """Return why a segment that is not built from the plan's sources must stay as it is, or nothing.

    They have to be all that it was built from, as it is now: a part of it must never take the place of the whole. A
    file is known by its URL, by what it holds or, where no record is lost by that, by its name.
    """
    if commit.cameras != cameras:
        return f"is in the lake already with cameras {', '.join(commit.cameras)}; use these, or another split"
    now, before = (sum(source.records for source in sources) for sources in (plan.sources, commit.sources))
    urls, contents = {source.uri for source in plan.sources}, set(_contents(plan.sources, commit))
    names = {file_name(source.uri) for source in plan.sources} if now >= before else set()
    missing = [
        source
        for source in commit.sources
        if source.uri not in urls
        and file_name(source.uri) not in names
        and source.cut_off_at is None
        and not contents & set(_contents([source], commit))
    ]
    if missing:
        return (
            f"is in the lake already, built from other files ({before} records in {len(commit.sources)} files,"
            f" here {now} in {len(plan.sources)}); name {missing[0].uri} as well, or build into another lake or split"
        )
    cut_off = [source.uri for source in plan.sources if source.cut_off_at is not None]
    if cut_off and now < before:
        return f"is in the lake already with {before} records, and {cut_off[0]} is cut off behind {now}; fetch it again"
    return ""


def file_name(uri: str) -> str:
    """Return the last part of a URL."""
    return uri.rsplit("/", 1)[-1]


def _contents(sources: tuple[SourceFile, ...] | list[SourceFile], commit: Commit) -> list[tuple[object, ...]]:
    """Return what the sources hold, in an order of its own, as far as the commit tells."""
    # Commits of before there were checksums have none.
    checked = all(source.checksum for source in commit.sources)
    return sorted(
        (source.bytes, source.records, source.cut_off_at or -1, source.checksum if checked else "")
        for source in sources
    )
