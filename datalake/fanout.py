"""A build over many workers: one task per source to index it, then one task per segment.

Where tasks run is given: on a Ray cluster (`datalake.ray_tasks`) or in processes of this machine
(`datalake.process_tasks`). Plan, commits, report, quarantine and retries are the same.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datalake.build import BuildConfig, SegmentReport, build_segment
from datalake.commit import Commit, check_split_name, commit_name
from datalake.lake import list_commits, newest_commits, prepare_lake, publish_snapshot, read_commits
from datalake.plan import plan_segments
from datalake.ray_tasks import run_on_ray
from datalake.revision import file_name, is_built, obstacle
from datalake.source_list import list_sources
from datalake.sources.formats import index_source
from datalake.sources.source import SegmentPlan, SourceIndex
from datalake.store import Store
from datalake.vacuum import GRACE_S, vacuum

# From a function and calls of it, as (item, arguments), to (item, result) or (item, exception) as they finish. The
# exception is what `attempt` returns, or says that whoever ran the task is gone; a bug in a task is raised.
RunTasks = Callable[[Callable[..., Any], Iterable[tuple[Any, tuple[Any, ...]]]], Iterator[tuple[Any, Any]]]


@dataclass(slots=True)
class BuildReport:
    """What became of a build.

    segments: one report per segment that was worked on
    skipped: segments that were in the lake before
    failures: source or segment -> why it is not in the lake, in one line
    snapshot: the number of the snapshot that holds everything committed so far
    swept: files of dead attempts that were removed
    """

    segments: list[SegmentReport] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    snapshot: int = 0
    swept: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is: `done` of `total` sources indexed (`index`) or frames built (`build`)."""

    stage: str
    done: int
    total: int


def build_lake(
    sources: Sequence[str],
    lake_url: str,
    config: BuildConfig,
    notify: Callable[[Progress], None],
    grace_s: float = GRACE_S,
    index: Callable[[str], SourceIndex] = index_source,
    build: Callable[[SegmentPlan, str, BuildConfig], SegmentReport] = build_segment,
    run: RunTasks = run_on_ray,
) -> BuildReport:
    """Build every segment of `sources` that the lake does not have, and publish a snapshot.

    Of a segment that it has, but not as the sources are now, a new build supersedes the old.

    index, build: what a task does with a source, and with a segment
    run: where the tasks run; on Ray, which must be initialized then, or in processes

    Raises LakeError where nothing can be built at all (no source, another schema
    version or point mode); every other failure is one line of the report, and the rest goes on.
    """
    check_split_name(config.split)
    store = Store(lake_url)
    prepare_lake(store, config.points)
    report = BuildReport()
    plans = plan_segments(_index(list_sources(sources, report.failures), index, run, report, notify))
    unread = list(report.failures)
    if not config.allow_truncated:
        unread += sorted({source.uri for plan in plans for source in plan.sources if source.cut_off_at is not None})
    listed = list_commits(store, config.split)
    commits: dict[str, list[Commit]] = defaultdict(list)
    for commit in read_commits(store, listed):
        commits[commit.segment].append(commit)
    todo = []
    for plan in plans:
        earlier = commits[plan.segment]
        (newest,) = newest_commits(earlier) or (None,)
        reads_all = all(source.uri not in unread for source in plan.sources)
        if newest is not None and reads_all and is_built(plan, newest):
            if reason := obstacle(plan, newest, config.cameras):
                report.failures[plan.segment] = reason
            else:
                report.skipped.append(plan.segment)
        elif reads_all and (source := _may_hold_more(plan, unread)):
            report.failures[plan.segment] = (
                f"is held back: {source} cannot be read to its end and may hold some of its records;"
                " mend it, or leave it out"
            )
        elif newest is not None and (reason := obstacle(plan, newest, config.cameras)):
            report.failures[plan.segment] = reason
        else:
            # Names of commits may be taken by segments that are called like them.
            number = next(n for n in itertools.count() if commit_name(config.split, plan.segment, n) not in listed)
            todo.append(replace(plan, number=number, supersedes=tuple(commit.name for commit in earlier)))
    _build([(plan, (plan, store.url, config)) for plan in todo], build, run, report, notify)
    planned = {plan.segment: plan for plan in todo}
    lost = [planned[one.segment] for one in report.segments if one.outcome == "present"]
    # Somebody else was faster, perhaps with other files.
    winners = read_commits(store, [commit_name(config.split, plan.segment, plan.number) for plan in lost])
    for plan, winner in zip(lost, winners, strict=True):
        if reason := obstacle(plan, winner, config.cameras):
            report.failures[plan.segment] = reason
        elif winner.segment != plan.segment or not is_built(plan, winner):
            report.failures[plan.segment] = "was committed by another build meanwhile; run the same command again"
    report.swept = len(vacuum(store, config.split, grace_s))
    report.snapshot = publish_snapshot(store)
    return report


def _index(
    uris: Sequence[str],
    index: Callable[[str], SourceIndex],
    run: RunTasks,
    report: BuildReport,
    notify: Callable[[Progress], None],
) -> Iterator[SourceIndex]:
    for done, (uri, result) in enumerate(run(index, [(uri, (uri,)) for uri in uris]), start=1):
        if isinstance(result, SourceIndex):
            yield result
        else:
            report.failures[uri] = _one_line(result)
        notify(Progress("index", done, len(uris)))


def _build(
    calls: Sequence[tuple[SegmentPlan, tuple[SegmentPlan, str, BuildConfig]]],
    build: Callable[[SegmentPlan, str, BuildConfig], SegmentReport],
    run: RunTasks,
    report: BuildReport,
    notify: Callable[[Progress], None],
) -> None:
    total, done = sum(len(plan.records) for plan, _ in calls), 0
    notify(Progress("build", 0, total))
    # Long segments first: the last tasks to finish are then short ones.
    for plan, result in run(build, sorted(calls, key=lambda call: -len(call[0].records))):
        if isinstance(result, SegmentReport):
            report.segments.append(result)
            if result.outcome == "failed":
                report.failures[plan.segment] = result.reason
        else:
            report.failures[plan.segment] = _one_line(result)
        done += len(plan.records)
        notify(Progress("build", done, total))


def _may_hold_more(plan: SegmentPlan, unread: Sequence[str]) -> str | None:
    """Return a source that could not be read whole and may hold records of the segment; None: none does.

    Waymo's files are called after their one segment. Where a segment's are, another file may hold more of it only if it
    is called after it, too.
    """
    if all(plan.segment in file_name(source.uri) for source in plan.sources):
        unread = [uri for uri in unread if plan.segment in file_name(uri)]
    return unread[0] if unread else None


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
