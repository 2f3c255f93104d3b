"""The weights that a student's trunk starts from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from rich.console import Console
from torch import Tensor

from student.config import StudentConfig, StudentError
from student.detector import Student
from student.timm_trunk import TimmTrunk
from student.trunk import build_trunk, trunk_settings
from training.checkpoint import CHECKPOINT_FILE, load_checkpoint
from training.run_dir import RunDir
from training.weights_file import read_weights

_TRUNK = "trunk."


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedTrunk:
    """The trunk of a pre-training run, as of its checkpoint.

    student: a student's configuration with this trunk
    state: its state dict
    sha256: of names, types, shapes and values of the state
    """

    student: StudentConfig
    state: dict[str, Tensor]
    sha256: str


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
    except FileNotFoundError:
        sha256 = _recorded_sha256(url, out)
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


def weights_sha256(url: str | None, out: str) -> str | None:
    """Return the checksum of a file of weights, or that which the run in `out` began with where it is gone.

    Raises StudentError where neither is there.
    """
    if url is None:
        return None
    try:
        return read_weights(url).sha256
    except FileNotFoundError:
        return _recorded_sha256(url, out)


def _recorded_sha256(url: str, out: str) -> str:
    checkpoint = load_checkpoint(RunDir(out))
    sha256 = None if checkpoint is None else StudentConfig.from_json(checkpoint.config).trunk_weights_sha256
    if sha256 is None:
        raise StudentError(f"--student.trunk-weights {url}: no such file")
    return sha256


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


def read_pretrained(url: str) -> PretrainedTrunk | None:
    """Return the trunk of the pre-training run at `url`, or None where there is no checkpoint.

    Raises StudentError where it is of another training, TrainingError where it is damaged.
    """
    checkpoint = load_checkpoint(RunDir(url))
    if checkpoint is None:
        return None
    state = {
        name.removeprefix(_TRUNK): value for name, value in checkpoint.objective.items() if name.startswith(_TRUNK)
    }
    if not state:
        raise StudentError(f"--init {url}: not a pre-trained trunk; give the folder that pretrain.py wrote to")
    return PretrainedTrunk(student=StudentConfig.from_json(checkpoint.config), state=state, sha256=state_sha256(state))


def pretrained_sha256(url: str | None, out: str) -> str | None:
    """Return the checksum of the pre-trained trunk that the run in `out` starts, or has started, from; None: of none.

    Where the pre-training run is gone, the checkpoint in `out` knows. Raises StudentError where neither is there.
    """
    return None if url is None else _init_sha256(url, read_pretrained(url), out)


def _init_sha256(url: str, pretrained: PretrainedTrunk | None, out: str) -> str:
    if pretrained is not None:
        return pretrained.sha256
    checkpoint = load_checkpoint(RunDir(out))
    recorded = None if checkpoint is None else checkpoint.fingerprint.get("init")
    if not isinstance(recorded, str):
        raise StudentError(
            f"--init {RunDir(url).place(CHECKPOINT_FILE)}: no such checkpoint; give the folder of a run of pretrain.py"
        )
    return recorded


def check_pretrained(url: str, student: StudentConfig, out: str, console: Console) -> str:
    """Say which trunk the student starts from, and return its checksum.

    Raises StudentError where it is another than the student's.
    """
    if student.trunk_weights is not None:
        raise StudentError(f"--init {url}: the trunk has --student.trunk-weights already; leave one of them out")
    pretrained = read_pretrained(url)
    sha256 = _init_sha256(url, pretrained, out)
    if pretrained is None:
        told = f"{url} is gone; the run goes on with what it has made of the trunk {sha256}"
    else:
        _check_same_trunk(url, pretrained, student)
        told = f"pre-trained in {url}, sha256 {sha256}"
    console.print(f"trunk {student.trunk}: {told}", soft_wrap=True, highlight=False)
    return sha256


def load_pretrained(student: Student, url: str, out: str, sha256: str) -> None:
    """Give a student's trunk the weights of a pre-training run, unless the run in `out` has a checkpoint already.

    sha256: of the trunk, as it was when the training was prepared

    Raises StudentError where they are another trunk's, or have changed since.
    """
    if RunDir(out).exists(CHECKPOINT_FILE):
        return
    pretrained = read_pretrained(url)
    if pretrained is None or pretrained.sha256 != sha256:
        raise StudentError(f"--init {url}: the trunk has changed since the training began; wait for its run to end")
    student.backbone.trunk.load_state_dict(pretrained.state)


def _check_same_trunk(url: str, pretrained: PretrainedTrunk, student: StudentConfig) -> None:
    found, expected = trunk_settings(pretrained.student), trunk_settings(student)
    differing = [f"{name} {found[name]} instead of {expected[name]}" for name in found if found[name] != expected[name]]
    if differing:
        raise StudentError(
            f"--init {url}: another trunk than the student's: {', '.join(differing)}; give both the same --student.…"
        )
    shapes = {name: value.shape for name, value in build_trunk(student).state_dict().items()}
    given = {name: value.shape for name, value in pretrained.state.items()}
    if wrong := sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name)):
        raise StudentError(
            f"--init {url}: {len(wrong)} weights are not the trunk's, e.g. {wrong[0]}; pre-train it with this version"
        )


def state_sha256(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of a state dict on the CPU."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
