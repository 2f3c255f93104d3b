"""The workers of Ray Train: one function run by each of them, and what stops it in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ray.train
import ray.train.torch
from ray.exceptions import RayError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from datalake.disk import room_in
from student.config import StudentError
from training.distributed import Distributed
from training.errors import TrainingError

# Called with a step that is done and what was measured in it.
Report = Callable[[int, Mapping[str, float]], None]


def run_workers(
    work: Callable[[Any, Distributed, Report], Any],
    task: Any,
    *,
    workers: int,
    use_gpu: bool,
    folder: str,
    max_failures: int,
    report_every: int,
    steps: int,
) -> Any:
    """Run `work(task, distributed, report)` in each worker of the cluster that this process has joined.

    folder: any fsspec URL, for Ray Train's own record
    max_failures: how often lost workers are started again
    report_every, steps: every so many steps, and after the last, a worker says how far it is

    Returns what the first worker returned. Raises TrainingError, in one line, where the work stops before its end.
    """
    trainer = TorchTrainer(
        _run,  # type: ignore[arg-type]  # the annotation is older than return values
        train_loop_config={"work": work, "task": task, "every": report_every, "steps": steps},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=RunConfig(name="ray", storage_path=folder, failure_config=FailureConfig(max_failures=max_failures)),
    )
    try:
        with room_in(folder):
            result = trainer.fit()
    except WorkerGroupError as error:
        raise TrainingError(f"a worker failed: {_last_line(next(iter(error.worker_failures.values())))}") from error
    except ControllerError as error:
        raise TrainingError(f"Ray Train failed: {_last_line(error.controller_failure)}") from error
    except RayError as error:
        # The node of this process is lost, or so overloaded that the cluster takes it for lost.
        raise TrainingError(
            f"the cluster lost the training: {_last_line(error)}; run the same command again to go on"
        ) from error
    stopped, returned = result.return_value  # type: ignore[attr-defined]  # the annotation is of an older Result
    if stopped is not None:
        raise TrainingError(stopped)
    return returned


def use_gpus(workers: int, device: str, available: int, taken: int = 0, beside: str = "") -> bool:
    """Return whether the workers take a GPU each of a cluster that has so many.

    taken: GPUs that others have, and `beside` how the message calls them

    Raises TrainingError where there are some, but not for all: none would be used.
    """
    if device == "cpu" or not available:
        return False
    left = available - taken
    if left < workers:
        raise TrainingError(
            f"--workers {workers}: the cluster has GPUs for {max(0, left)} of them{beside}; give"
            f" {f'--workers {left}' if left > 0 else 'the teachers less'}, or --device cpu for all"
        )
    return True


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _run(settings: dict[str, Any]) -> tuple[str | None, Any]:
    """Run in each worker of Ray Train; return why the work stopped before its end, if it did, and what it returned.

    An error that all workers find alike is returned: a restart would end the same way. One that a worker finds in its
    own samples is raised: the others would wait for it.
    """
    context = ray.train.get_context()
    distributed = Distributed(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    every, steps = settings["every"], settings["steps"]

    def report(step: int, values: Mapping[str, float]) -> None:
        if step % every == 0 or step == steps:
            ray.train.report({"step": step, **values})
            if distributed.rank == 0:
                print(f"step {step:,} of {steps:,}: {_line(values)}", flush=True)

    try:
        return None, settings["work"](settings["task"], distributed, report)
    except (TrainingError, StudentError) as error:
        return str(error), None


def _line(values: Mapping[str, float]) -> str:
    losses = ", ".join(f"{name[5:]} {value:.3f}" for name, value in values.items() if name.startswith("loss/"))
    return f"{losses}; {values['images_per_second']:.1f} images/s"
