"""Tasks of a build on Ray. Ray itself is imported where it is used: whatever else the package does runs without."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from datalake.task import attempt

Item = TypeVar("Item")

# A task whose worker dies (killed, out of memory, node lost) is run again.
_RETRIES = 3


def run_on_ray(
    function: Callable[..., Any], calls: Iterable[tuple[Item, tuple[Any, ...]]]
) -> Iterator[tuple[Item, Any]]:
    """Yield (item, result) or (item, exception) as the calls finish, with about two under way per CPU.

    Ray must be initialized.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    task = ray.remote(attempt).options(num_cpus=1, max_retries=_RETRIES)
    window = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    remaining = iter(calls)
    running: dict[ray.ObjectRef, Item] = {}
    while True:
        for item, arguments in itertools.islice(remaining, window - len(running)):
            running[task.remote(function, *arguments)] = item
        if not running:
            return
        ray.wait(list(running), num_returns=1)
        # To wait takes time for each that is under way. On thousands of CPUs the driver keeps up only because it then
        # takes all that have finished, not one.
        finished, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
        for reference in finished:
            item = running.pop(reference)
            try:
                yield item, ray.get(reference)
            except RayTaskError:
                raise
            except RayError as error:
                yield item, error
