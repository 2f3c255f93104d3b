"""Teachers in processes of their own: named Ray actors that all students of the same job share.

    with teacher_actors({"lidar": ActorSpec(load=partial(load_teacher, url), num_gpus=0.3)}):
        pool = RayPool(["lidar"], grid=(64, 96))      # here, or in any worker of the job
        for batch, targets in pool.follow(loader):
            ...

The block keeps the teachers alive; students come and go. A teacher whose process dies is started again and predicts
again: that costs time, no data. Ray must be initialized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from datalake.sample import Sample
from teachers.card import TeacherCard, TeacherError
from teachers.pool import TeacherPool
from teachers.target import SparseTarget
from teachers.teacher import Teacher

# How often a teacher's process may die before that counts as the teacher's fault, and how often a batch is repeated.
_RESTARTS = 5
_RETRIES = 5


@dataclass(frozen=True, kw_only=True)
class ActorSpec:
    """How one teacher's actor is started.

    load: from a device ("cpu" or "cuda") to the teacher; runs in the actor, so it must be picklable
    num_gpus: share of a GPU; with 0 the teacher runs on `num_cpus` CPUs
    """

    load: Callable[[str], Teacher]
    num_cpus: float = 1
    num_gpus: float = 0


class TeacherActor:
    """What runs in the actor."""

    def __init__(self, load: Callable[[str], Teacher], device: str) -> None:
        self._teacher = load(device)

    def card(self) -> TeacherCard:
        return self._teacher.card

    def predict(self, batch: list[Sample], height: int, width: int) -> SparseTarget:
        return self._teacher.predict(batch, height, width).to_sparse().to("cpu")


@contextmanager
def teacher_actors(specs: Mapping[str, ActorSpec], *, start_s: float = 600) -> Iterator[None]:
    """Start an actor per spec, named as its teacher, and stop them at the end of the block.

    Raises TeacherError, in one line, where a teacher does not load, the cluster has not enough for it, or it has not
    started within `start_s` seconds (which a loaded cluster may take).
    """
    actors: dict[str, Any] = {}
    try:
        for name, spec in specs.items():
            _check_resources(name, spec)
            actor = ray.remote(TeacherActor).options(
                name=_actor_name(name),
                num_cpus=spec.num_cpus,
                num_gpus=spec.num_gpus,
                max_restarts=_RESTARTS,
                max_task_retries=_RETRIES,
            )
            actors[name] = actor.remote(spec.load, "cuda" if spec.num_gpus else "cpu")
        for name, actor in actors.items():
            _get(name, actor.card.remote(), start_s)
        yield
    finally:
        for actor in actors.values():
            ray.kill(actor)


class RayPool(TeacherPool):
    """Teachers in the actors of these names. A window of 2 to 4 batches keeps them busy and the object store small."""

    def __init__(
        self,
        names: Sequence[str],
        grid: tuple[int, int],
        *,
        window: int = 3,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(grid, window=window, device=device)
        self._actors = {name: _actor(name) for name in names}
        self._cards = {name: _get(name, actor.card.remote()) for name, actor in self._actors.items()}

    @property
    def cards(self) -> dict[str, TeacherCard]:
        """The teachers' cards, by the names of their actors."""
        return dict(self._cards)

    def _ask(self, batch: list[Sample]) -> Any:
        # Put once, so that the batch does not travel once per teacher.
        shared = ray.put(batch)
        return {name: actor.predict.remote(shared, *self.grid) for name, actor in self._actors.items()}

    def _answers(self, asked: Any) -> dict[str, SparseTarget]:
        return {name: _get(name, reference) for name, reference in asked.items()}


def _actor_name(name: str) -> str:
    return f"teacher:{name}"


def _actor(name: str) -> Any:
    try:
        return ray.get_actor(_actor_name(name))
    except ValueError as error:
        raise TeacherError(f"no actor of teacher {name} in this Ray job; start it with teacher_actors first") from error


def _check_resources(name: str, spec: ActorSpec) -> None:
    """Raise TeacherError where no node could ever run the actor: Ray would wait for one for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": spec.num_cpus, "GPU": spec.num_gpus}
    if not any(all(node.get(kind, 0) >= amount for kind, amount in wanted.items()) for node in nodes):
        raise TeacherError(
            f"teacher {name} needs {spec.num_cpus} CPUs and {spec.num_gpus} GPUs, which no node of the cluster has"
        )


def _get(name: str, reference: Any, timeout_s: float | None = None) -> Any:
    """Return the result; what went wrong with the teacher becomes a TeacherError, bugs pass as they are."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, TeacherError):
            raise TeacherError(f"teacher {name}: {error.cause}") from error
        raise
    except RayActorError as error:
        last = str(error).strip().splitlines()[-1]
        raise TeacherError(f"teacher {name} is gone and does not come back: {last}") from error
    except GetTimeoutError as error:
        raise TeacherError(
            f"teacher {name} has not started after {timeout_s:.0f} s: is the cluster busy with something else?"
        ) from error
