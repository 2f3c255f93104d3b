"""What the Dockerfile promises: sources that exist, pinned versions, an ordinary user, code last."""

from __future__ import annotations

import re

import pytest

from tests.docker.files import DOCKERFILE, ROOT, instructions, parent_of

FINAL = ("cpu", "cuda")
IGNORE = (ROOT / ".dockerignore").read_text().splitlines()
ALLOWED = [line[1:] for line in IGNORE if line.startswith("!")]


def pins(text: str) -> dict[str, str]:
    """Return name -> version of every name==version."""
    found = re.findall(r"([A-Za-z0-9._-]+)(?:\[[\w,]*\])?==([\w.]+)", text)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_what_is_copied_is_there_and_is_sent_to_the_build() -> None:
    copied = [text.split()[:-1] for _, kind, text in instructions() if kind == "COPY" and "--from" not in text]
    assert copied
    for name in {name for names in copied for name in names} - {"."}:
        assert (ROOT / name).is_file()
        assert name in ALLOWED


def test_only_what_the_image_needs_is_sent_to_the_build() -> None:
    assert "*" in IGNORE
    assert [name for name in ALLOWED if not list(ROOT.glob(name))] == []
    assert not set(ALLOWED) & {".", ".git", ".venv", "out", "tests", "benchmarks"}


def test_every_package_is_in_the_image() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - set(ALLOWED) == {"benchmarks", "tests"}


@pytest.mark.parametrize("stage", FINAL)
def test_the_image_runs_as_an_ordinary_user_with_a_fixed_number(stage: str) -> None:
    assert [text for name, kind, text in instructions() if (name, kind) == (stage, "USER")][-1] == "1000:1000"
    assert "useradd --uid 1000 " in DOCKERFILE


def test_versions_are_those_of_the_constraints() -> None:
    known, named = pins((ROOT / "constraints.txt").read_text()), pins(DOCKERFILE)
    assert "waymo-open-dataset-tf-2-12-0" in named
    assert {name: version for name, version in named.items() if known.get(name, version) != version} == {}
    assert named.items() >= pins((ROOT / "Makefile").read_text()).items()


def test_whatever_pip_takes_from_an_index_is_pinned() -> None:
    runs = [text for _, kind, text in instructions() if kind == "RUN"]
    calls = [call for text in runs for call in re.findall(r"pip install ([^&]+)", text)]
    assert len(calls) == 4
    assert all("--constraint constraints.txt" in call or "--no-deps" in call for call in calls)


def test_no_registry_or_index_is_named() -> None:
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host|pypi\.", DOCKERFILE)


def test_dependencies_come_before_code() -> None:
    stages = [(stage, kind, text) for stage, kind, text in instructions() if kind in ("RUN", "COPY")]
    code = stages.index(("cpu", "COPY", ". ."))
    assert all(stage == "dependencies" for stage, _, _ in stages[:code])
    # torchsparse takes minutes to compile: a change of code must not.
    assert parent_of("torchsparse") == "dependencies"
    assert "COPY" not in [kind for stage, kind, _ in instructions() if stage == "torchsparse"]


def test_the_cuda_runtime_that_is_linked_is_torchs() -> None:
    toolkit = pins((ROOT / "constraints.txt").read_text())["cuda-toolkit"]
    assert f"libcudart.so.{toolkit.partition('.')[0]} " in DOCKERFILE
    assert f"nvidia/cu{toolkit.partition('.')[0]} " in DOCKERFILE


def test_the_cuda_image_ends_with_a_convolution() -> None:
    stage, kind, text = instructions()[-1]
    assert (stage, kind, text) == ("cuda", "RUN", "python -W ignore docker/torchsparse_check.py")
