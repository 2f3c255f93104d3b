"""The teachers of a student, wherever they run: batches in, targets out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from datalake.sample import Sample, SampleKey, naming
from teachers.card import TeacherCard, TeacherError
from teachers.target import SparseTarget, Target
from teachers.teacher import Teacher
from training.objective import Batch


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a submitted batch is collected by, once."""

    number: int
    keys: tuple[SampleKey, ...]


class TeacherPool(ABC):
    """Teachers that predict targets for one student, a bounded number of batches ahead.

    Every target is rounded to half precision, as between processes, also within one: where the teachers run does not
    change it. A target must be of the samples that were submitted.
    """

    def __init__(self, grid: tuple[int, int], *, window: int, device: torch.device | str) -> None:
        """Open the pool.

        grid: height and width of the student's grid
        window: how many batches may be submitted and not yet collected
        device: where the targets go
        """
        if window < 1:
            raise TeacherError(f"window: expected at least 1 batch, got: {window}")
        self.grid, self.window, self.device = grid, window, torch.device(device)
        self._asked: dict[Ticket, Any] = {}
        self._submitted = 0

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

    @property
    def in_flight(self) -> int:
        """How many batches are submitted and not yet collected."""
        return len(self._asked)

    def submit(self, batch: Sequence[Sample]) -> Ticket:
        """Hand in a batch; return the ticket to collect the targets by.

        Raises TeacherError where the window is full. It does not wait: only the caller can collect.
        """
        if self.in_flight >= self.window:
            raise TeacherError(f"{self.in_flight} batches are in flight, the window's size; collect one first")
        ticket = Ticket(self._submitted, tuple(sample.key for sample in batch))
        self._submitted += 1
        with naming(ticket.keys):
            self._asked[ticket] = self._ask([_question(sample) for sample in batch])
        return ticket

    def collect(self, ticket: Ticket) -> dict[str, Target]:
        """Return the targets of a submitted batch by the teachers' names, waiting for them; a ticket serves once.

        Raises TeacherError where a teacher fails, or predicts other samples.
        """
        if ticket not in self._asked:
            raise TeacherError(f"batch {ticket.number} is not in flight: never submitted here, or collected already")
        with naming(ticket.keys):
            answers = self._answers(self._asked.pop(ticket))
            for name, answer in answers.items():
                if answer.keys != ticket.keys:
                    raise TeacherError(_mismatch(name, ticket, answer))
                _check_classes(name, answer, self.cards[name])
            arrived = {name: answer.to(self.device) for name, answer in answers.items()}
            return {name: one.to_dense() if isinstance(one, SparseTarget) else one for name, one in arrived.items()}

    def follow(
        self, batches: Iterable[Sequence[Sample]]
    ) -> Generator[tuple[Sequence[Sample], dict[str, Target]], None, None]:
        """Yield each batch with its targets, in order, while the teachers work up to a window ahead.

        Batches are taken as the window allows: a slow student slows down their source.
        """
        waiting: deque[tuple[Sequence[Sample], Ticket]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, self.submit(batch)))
                if len(waiting) == self.window:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:
            for _, ticket in waiting:
                del self._asked[ticket]

    def teach(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, dict[str, Target]]]:
        """Yield each batch of a training with its targets, in order (see `follow`)."""
        asked: deque[Batch] = deque()

        def samples() -> Iterator[Sequence[Sample]]:
            for batch in batches:
                asked.append(batch)
                yield batch.samples

        for _, targets in self.follow(samples()):
            yield asked.popleft(), targets

    def _next(self, waiting: deque[tuple[Sequence[Sample], Ticket]]) -> tuple[Sequence[Sample], dict[str, Target]]:
        batch, ticket = waiting.popleft()
        return batch, self.collect(ticket)


class LocalPool(TeacherPool):
    """Teachers in the student's own process, which run on a batch when it is collected."""

    def __init__(
        self,
        teachers: Sequence[Teacher],
        grid: tuple[int, int],
        *,
        window: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(grid, window=window, device=device)
        self._teachers = by_name((teacher.card.name, teacher) for teacher in teachers)

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


def by_name(named: Iterable[tuple[str, Any]]) -> Mapping[str, Any]:
    """Return the items by name; raises TeacherError where two have the same."""
    items: dict[str, Any] = {}
    for name, item in named:
        if name in items:
            raise TeacherError(f"two teachers are called {name}; name each once")
        items[name] = item
    return items


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


def _mismatch(name: str, ticket: Ticket, answer: SparseTarget | Target) -> str:
    if len(answer.keys) != len(ticket.keys):
        return f"teacher {name} predicted {len(answer.keys)} samples of a batch of {len(ticket.keys)}"
    place = next(i for i, pair in enumerate(zip(ticket.keys, answer.keys, strict=True)) if pair[0] != pair[1])
    return (
        f"teacher {name} predicted other samples than were submitted: sample {place} of batch {ticket.number} is"
        f" {ticket.keys[place]}, got: {answer.keys[place]}"
    )
