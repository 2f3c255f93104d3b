"""The weights that a student's trunk starts from."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from student.config import StudentConfig, StudentError
from student.detector import Student
from student.timm_trunk import TimmTrunk
from student.trunk import build_trunk
from training.checkpoint import CHECKPOINT_FILE, load_checkpoint
from training.run_dir import RunDir
from training.weights_file import read_weights


def recompute_activations(student: Student) -> None:
    """Have the student's trunk compute most of its activations twice; raises StudentError where it cannot."""
    if not isinstance(trunk := student.backbone.trunk, TimmTrunk):
        raise StudentError(f"--recompute-activations: expected a trunk of timm's, got: {student.config.trunk}")
    trunk.recompute_activations()


def prepare_trunk(student: StudentConfig, out: str, console: Console) -> StudentConfig:
    """Check that a trunk of timm's can be built and takes its weights; return the student with their checksum.

    out: the run's folder; where its checkpoint has the weights already, their file may be gone

    Raises StudentError or TrainingError where something does not fit.
    """
    if student.timm_name is None:
        return student
    trunk, url = build_trunk(student), student.trunk_weights
    assert isinstance(trunk, TimmTrunk)
    if url is None:
        return student
    try:
        weights = read_weights(url)
    except FileNotFoundError as error:
        checkpoint = load_checkpoint(RunDir(out))
        sha256 = None if checkpoint is None else StudentConfig.from_json(checkpoint.config).trunk_weights_sha256
        if sha256 is None:
            raise StudentError(f"--student.trunk-weights {url}: no such file") from error
        console.print(
            f"trunk {student.trunk}: {url} is gone; the run goes on with what it has made of the weights {sha256}",
            soft_wrap=True,
            highlight=False,
        )
        return replace(student, trunk_weights_sha256=sha256)
    left_out = sorted({name.rpartition(".")[0] for name in trunk.load(weights.tensors, url)})
    console.print(
        f"trunk {student.trunk}: weights of {url}, sha256 {weights.sha256}"
        + (f"; no place for {', '.join(left_out)}" if left_out else ""),
        soft_wrap=True,
        highlight=False,
    )
    return replace(student, trunk_weights_sha256=weights.sha256)


def load_trunk(student: Student, url: str, out: str) -> None:
    """Give a student's trunk the weights in a file, unless the run in `out` has a checkpoint, which has later ones.

    Raises StudentError where they are not those whose checksum the student's configuration has.
    """
    if RunDir(out).exists(CHECKPOINT_FILE):
        return
    weights = read_weights(url)
    if weights.sha256 != student.config.trunk_weights_sha256:
        raise StudentError(
            f"{url}: its sha256 is {weights.sha256}, where the training began it was"
            f" {student.config.trunk_weights_sha256}; give all workers the same file"
        )
    trunk = student.backbone.trunk
    assert isinstance(trunk, TimmTrunk)
    trunk.load(weights.tensors, url)
