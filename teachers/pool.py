"""The teachers of a student, wherever they run: batches in, targets out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from datalake.sample import Sample, SampleKey, naming
from teachers.card import TeacherCard, TeacherError
from teachers.target import SparseTarget, Target
from teachers.teacher import Teacher
from training.objective import Batch

Asked = TypeVar("Asked")


class TeacherPool(ABC):
    """Teachers that predict targets for one student, a bounded number of batches ahead.

    Every target is rounded to half precision, as between processes, also within one: where the teachers run does not
    change it. A target must be of the samples that were submitted.
    """

    def __init__(self, grid: tuple[int, int], *, window: int, device: torch.device | str) -> None:
        """Open the pool.

        grid: height and width of the student's grid
        window: how many batches the teachers may be asked about ahead, the next one included
        device: where the targets go
        """
        if window < 1:
            raise TeacherError(f"window: expected at least 1 batch, got: {window}")
        self.grid, self.window, self.device = grid, window, torch.device(device)

    @property
    @abstractmethod
    def cards(self) -> dict[str, TeacherCard]:
        """The teachers' cards, by name."""

    @abstractmethod
    def _ask(self, batch: list[Sample]) -> Any:
        """Hand the batch to every teacher; return what `_answers` takes."""

    @abstractmethod
    def _answers(self, asked: Any) -> Mapping[str, SparseTarget | Target]:
        """Return every teacher's target, by its name: sparse, or dense and rounded alike."""

    def follow(
        self, batches: Iterable[Sequence[Sample]]
    ) -> Generator[tuple[Sequence[Sample], dict[str, Target]], None, None]:
        """Yield each batch with its targets, by the teachers' names and in order, as the teachers work ahead.

        Batches are taken as there is room in the window: a slow student slows down whoever makes them.

        Raises TeacherError where a teacher fails, or answers about other samples.
        """
        return self._ahead((batch, batch) for batch in batches)

    def teach(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, dict[str, Target]], None, None]:
        """Yield each batch of a training with its targets (see `follow`)."""
        return self._ahead((batch, batch.samples) for batch in batches)

    def _ahead(
        self, questions: Iterable[tuple[Asked, Sequence[Sample]]]
    ) -> Generator[tuple[Asked, dict[str, Target]], None, None]:
        window: deque[tuple[Asked, int, tuple[SampleKey, ...], Any]] = deque()
        for number, (batch, samples) in enumerate(questions):
            keys = tuple(sample.key for sample in samples)
            with naming(keys):
                window.append((batch, number, keys, self._ask([_question(sample) for sample in samples])))
            if len(window) == self.window:
                yield self._collected(*window.popleft())
        while window:
            yield self._collected(*window.popleft())

    def _collected(
        self, batch: Asked, number: int, keys: tuple[SampleKey, ...], asked: Any
    ) -> tuple[Asked, dict[str, Target]]:
        with naming(keys):
            answers = self._answers(asked)
            for name, answer in answers.items():
                if answer.keys != keys:
                    raise TeacherError(_mismatch(name, number, keys, answer))
                _check_classes(name, answer, self.cards[name])
            arrived = {name: answer.to(self.device) for name, answer in answers.items()}
            targets = {name: one.to_dense() if isinstance(one, SparseTarget) else one for name, one in arrived.items()}
        return batch, targets


class LocalPool(TeacherPool):
    """Teachers in the student's own process, by name; they look at a batch when its targets are due."""

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        grid: tuple[int, int],
        *,
        window: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(grid, window=window, device=device)
        self._teachers = dict(teachers)

    @property
    def cards(self) -> dict[str, TeacherCard]:
        """The teachers' cards, by name."""
        return {name: teacher.card for name, teacher in self._teachers.items()}

    def _ask(self, batch: list[Sample]) -> Any:
        return batch

    def _answers(self, asked: Any) -> Mapping[str, Target]:
        answers = {name: teacher.predict(asked, *self.grid) for name, teacher in self._teachers.items()}
        rounded = {name: answer.rounded() for name, answer in answers.items()}
        # A device is waited for once, however many teachers there are on it.
        for name, sound in zip(rounded, _on_the_host([sound for _, sound in rounded.values()]), strict=True):
            if not sound:
                answers[name].to_sparse()
        return {name: answer for name, (answer, _) in rounded.items()}


def _question(sample: Sample) -> Sample:
    """Return the sample without the labels, which teachers do not need: they would only be copied."""
    lidar = sample.lidar and replace(sample.lidar, semantic_class=None)
    return replace(sample, panoptic=None, lidar=lidar)


def _on_the_host(flags: Sequence[Tensor]) -> list[bool]:
    """Return flags bool [], of any devices."""
    if len({flag.device for flag in flags}) > 1:
        return [bool(flag) for flag in flags]
    found: list[bool] = torch.stack(list(flags)).tolist() if flags else []
    return found


def _check_classes(name: str, answer: SparseTarget | Target, card: TeacherCard) -> None:
    """Raise TeacherError for a class number that the card has no class for: a GPU that looks it up ends the process.

    Targets on a GPU were computed in this process, and reading them would mean waiting.
    """
    values = answer.values[:, 0].flatten()
    if card.kind != "classification" or values.device.type != "cpu" or not values.numel():
        return
    if (highest := int(values.max())) >= card.channels:
        wrong = int((values == highest).nonzero()[0])
        if isinstance(answer, Target):
            sample = answer.keys[wrong // (len(values) // len(answer.keys))]
        else:
            cell = wrong if answer.index is None else int(answer.index[wrong])
            sample = answer.keys[cell // (answer.shape[2] * answer.shape[3])]
        raise TeacherError(
            f"teacher {name}: expected classes 0 … {card.channels - 1} by its card, got: {highest} of {sample};"
            " the target is damaged or of another teacher: delete it where targets are kept"
        )


def _mismatch(name: str, number: int, keys: tuple[SampleKey, ...], answer: SparseTarget | Target) -> str:
    if len(answer.keys) != len(keys):
        return f"teacher {name} answered about {len(answer.keys)} samples of a batch of {len(keys)}"
    place = next(i for i, pair in enumerate(zip(keys, answer.keys, strict=True)) if pair[0] != pair[1])
    return (
        f"teacher {name} answered about other samples than it was asked: sample {place} of batch {number} is"
        f" {keys[place]}, got: {answer.keys[place]}"
    )
