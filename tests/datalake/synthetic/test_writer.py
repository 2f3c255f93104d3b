from __future__ import annotations

from pathlib import Path

import pytest

from datalake.sources.waymo_v1.tfrecord import RecordFile, Slot
from datalake.synthetic import DriveConfig, segment_name, write_drives
from datalake.synthetic.__main__ import main
from tests.datalake.synthetic.conftest import TINY


def _contents(paths: list[str]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


@pytest.mark.integration
def test_the_number_of_workers_and_segments_does_not_matter(tmp_path: Path) -> None:
    alone = write_drives(str(tmp_path / "alone"), TINY, segments=3, frames=1, seed=4)
    together = write_drives(str(tmp_path / "together"), TINY, segments=2, frames=1, seed=4, workers=2)
    assert _contents(alone)[:2] == _contents(together)


def test_files_hold_one_record_per_frame(tmp_path: Path) -> None:
    (path,) = write_drives(str(tmp_path), TINY, segments=1, frames=3)
    with RecordFile(path) as file:
        slots = list(file.slots())
        assert len(slots) == 3
        assert all(isinstance(slot, Slot) and file.read(slot) for slot in slots)


def test_files_that_exist_are_kept(tmp_path: Path) -> None:
    (path,) = write_drives(str(tmp_path), TINY, segments=1, frames=1)
    Path(path).write_bytes(b"kept")
    seen: list[str] = []
    write_drives(str(tmp_path), TINY, segments=1, frames=1, progress=seen.append)
    assert Path(path).read_bytes() == b"kept"
    assert seen == [path]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--frames", "0"], "--frames 0: expected at least 1"),
        (["--seed", "-1"], "--seed -1: expected at least 0"),
        (["--image-size", "384"], "WIDTHxHEIGHT"),
        (["--image-size", "4x4"], "too small"),
        (["--cameras", "FRONT,BACK"], "unknown camera 'BACK'"),
        (["--workers", "0"], "--workers 0: expected at least 1"),
        (["--beams", "1"], "too small"),
    ],
)
def test_bad_arguments_end_in_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    given = {"--out": str(tmp_path), "--segments": "1", "--frames": "1", arguments[0]: arguments[1]}
    assert main([word for pair in given.items() for word in pair]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert complaint in line
    assert not list(tmp_path.iterdir())


def test_the_command_line_writes_segments(tmp_path: Path) -> None:
    words = "--segments 2 --frames 1 --seed 9 --image-size 96x64 --beams 8 --columns 40 --cameras FRONT,SIDE_LEFT"
    assert main(["--out", str(tmp_path), *words.split()]) == 0
    config = DriveConfig(image_width=96, image_height=64, beams=8, columns=40, cameras=("FRONT", "SIDE_LEFT"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"segment-{segment_name(config, 9, index, 1)}.tfrecord" for index in range(2)
    ]


def test_drives_of_another_length_or_configuration_have_other_names() -> None:
    configs = DriveConfig(), DriveConfig(beams=32)
    names = {segment_name(config, 0, 0, frames) for config in configs for frames in (1, 2)}
    assert len(names) == 4


def test_a_camera_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="none twice"):
        DriveConfig(cameras=("FRONT", "FRONT"))
