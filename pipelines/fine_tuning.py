"""A student that is trained further: `train.py --fine-tune RUN`, on other frames than those of its run."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from torch import Tensor

from pipelines.image_size import trained_image_size
from pipelines.trainings import FINE_TUNE, ancestry_of
from pipelines.trunk_weights import state_sha256
from student.checkpoint import read_student
from student.config import BranchSpec, StudentConfig, StudentError
from student.detector import Student
from teachers.card import TeacherCard
from training.checkpoint import CHECKPOINT_FILE, load_checkpoint
from training.fingerprint import Plain
from training.run_dir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuned:
    """The student to train further.

    config: its architecture, anchors and branches, which stay
    state: its weights; None where the run is gone, and this one has gone on from them
    fingerprint: which weights they are, and what they were trained on
    image_size: width and height in pixels that it was trained with; None where nobody knows
    """

    config: StudentConfig
    state: dict[str, Tensor] | None
    fingerprint: dict[str, Plain]
    image_size: tuple[int, int] | None


def read_fine_tuned(url: str, out: str) -> FineTuned:
    """Return the student of the run at `url`; where that is gone, what the run in `out` has kept of it.

    Raises StudentError where neither is there, or `url` is no student's run.
    """
    if RunDir(url).exists(CHECKPOINT_FILE):
        student, checkpoint = read_student(url)
        state = student.state_dict()
        return FineTuned(
            config=student.config,
            state=state,
            fingerprint={FINE_TUNE: state_sha256(state), **ancestry_of(checkpoint.fingerprint)},
            image_size=trained_image_size(checkpoint),
        )
    own = load_checkpoint(RunDir(out))
    if own is None or own.fingerprint.get(FINE_TUNE) is None:
        raise StudentError(
            f"--fine-tune {RunDir(url).place(CHECKPOINT_FILE)}: no such checkpoint; give the folder of a run of"
            " train.py"
        )
    return FineTuned(
        config=StudentConfig.from_json(own.config),
        state=None,
        fingerprint={name: value for name, value in own.fingerprint.items() if name.partition(".")[0] == FINE_TUNE},
        image_size=trained_image_size(own),
    )


def check_fine_tuned(url: str, found: FineTuned, asked: StudentConfig, console: Console) -> None:
    """Say whose student is trained further.

    Raises StudentError where another architecture is asked for: its weights would have no place.
    """
    if asked != StudentConfig():
        raise StudentError(f"--fine-tune {url}: the student is that of this run; leave --preset and --student.… out")
    gone = "" if found.state else "; the run is gone, and this one goes on with what it has made of it"
    console.print(
        f"student of {url}, sha256 {found.fingerprint[FINE_TUNE]}, is trained further{gone}",
        soft_wrap=True,
        highlight=False,
    )


def check_branches(url: str, student: StudentConfig, cards: dict[str, TeacherCard]) -> None:
    """Raise StudentError where the student has no branch for one of the teachers, which are those of `cards`."""
    there = {spec.name: spec for spec in student.branches}
    for name, card in cards.items():
        if there.get(name) != BranchSpec.of(name, card):
            known = ", ".join(f"{spec.name} ({spec.kind}, {spec.channels})" for spec in there.values()) or "none"
            raise StudentError(
                f"--fine-tune {url}: the student has no branch for teacher {name} ({card.kind}, {card.channels}); there"
                f" are: {known}"
            )


def load_fine_tuned(student: Student, url: str, out: str, sha256: Plain) -> None:
    """Give a student the weights of the run at `url`, unless the run in `out` has a checkpoint, which has later ones.

    sha256: of the weights, as they were when the training was prepared

    Raises StudentError where they have changed since.
    """
    if RunDir(out).exists(CHECKPOINT_FILE):
        return
    found = read_fine_tuned(url, out)
    if found.state is None or found.fingerprint[FINE_TUNE] != sha256:
        raise StudentError(f"--fine-tune {url}: its student has changed since this training began; wait for it to end")
    student.load_state_dict(found.state)
