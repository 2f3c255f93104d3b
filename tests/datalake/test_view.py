"""Recordings, read back by Rerun's own reader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest

from datalake.__main__ import main
from datalake.commit import LakeError
from datalake.lake import Lake
from datalake.layers import ImageLayers
from datalake.view import write_recording
from tests.drives import DRIVE_FRAMES
from tests.frames import SEGMENT, make_frames
from tests.lakes import build_frames
from tests.support.programs import Call
from tests.support.recordings import logged_rows, logged_values

FRAMES = 3


def frame_rows(lake: Lake, table: str, segment: str, frame: int) -> list[dict[str, Any]]:
    here = ds.field("segment") == segment
    times = sorted(set(lake.scan("image", ["timestamp_us"], here).to_table().column(0).to_pylist()))
    found: list[dict[str, Any]] = (
        lake.scan(table, filter=here & (ds.field("timestamp_us") == times[frame])).to_table().to_pylist()
    )
    return found


@pytest.fixture(scope="module")
def scene(drive_lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first frames of a drive, in the world."""
    path = tmp_path_factory.mktemp("view") / "scene.rrd"
    segment = drive_lake.commits[1].segment
    assert write_recording(drive_lake, "train", segment, path, coordinates="world", frames=FRAMES) == FRAMES
    return path


def test_each_frame_has_points_boxes_and_every_camera(scene: Path) -> None:
    logged = logged_rows(scene)
    of_cameras = [
        f"/vehicle/{camera}/{what}" for camera in ("FRONT", "FRONT_LEFT") for what in ("image", "boxes", "depth")
    ]
    for entity in ("/vehicle", "/vehicle/points", "/vehicle/boxes", *of_cameras):
        assert logged.pop(entity) == FRAMES, entity
    assert not logged.total()


@pytest.mark.integration
def test_rerun_itself_finds_nothing_wrong_with_the_file(scene: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rerun", "rrd", "verify", str(scene)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_points_images_and_boxes_are_those_of_the_lake(drive_lake: Lake, scene: Path) -> None:
    segment, frame = drive_lake.commits[1].segment, FRAMES - 1
    (point,) = frame_rows(drive_lake, "point", segment, frame)
    xyz = np.stack([point["x_m"], point["y_m"], point["z_m"]], 1)
    np.testing.assert_array_equal(
        logged_values(scene, "/vehicle/points", "Points3D:positions")[frame], xyz.astype(np.float32)
    )
    image, left = (row for row in frame_rows(drive_lake, "image", segment, frame))
    (blob,) = logged_values(scene, "/vehicle/FRONT_LEFT/image", "EncodedImage:blob")[frame]
    assert {image["camera"], left["camera"]} == {"FRONT", "FRONT_LEFT"}
    assert bytes(blob) == next(row["jpeg"] for row in (image, left) if row["camera"] == "FRONT_LEFT")
    labels = [row for row in frame_rows(drive_lake, "label", segment, frame) if row["camera"] == "FRONT"]
    centers = [[(row["x0"] + row["x1"]) / 2, (row["y0"] + row["y1"]) / 2] for row in labels]
    np.testing.assert_allclose(
        logged_values(scene, "/vehicle/FRONT/boxes", "Boxes2D:centers")[frame], centers, rtol=1e-5
    )
    boxes = frame_rows(drive_lake, "label_3d", segment, frame)
    expected = [[row["center_x_m"], row["center_y_m"], row["center_z_m"]] for row in boxes]
    np.testing.assert_allclose(logged_values(scene, "/vehicle/boxes", "Boxes3D:centers")[frame], expected, rtol=1e-5)
    assert logged_values(scene, "/vehicle/boxes", "object_id")[frame] == [row["object_id"] for row in boxes]


def test_in_the_world_the_vehicle_moves_as_its_poses_do(drive_lake: Lake, scene: Path) -> None:
    poses = []
    for frame in range(FRAMES):
        (point,) = frame_rows(drive_lake, "point", drive_lake.commits[1].segment, frame)
        poses.append(np.array(point["vehicle_to_world"]).reshape(4, 4))
    moved = logged_values(scene, "/vehicle", "Transform3D:translation")
    for frame, pose in enumerate(poses):
        expected = (np.linalg.inv(poses[0]) @ pose)[:3, 3]
        np.testing.assert_allclose(moved[frame][0], expected, atol=1e-3)
    assert np.linalg.norm(moved[FRAMES - 1][0]) > 0.1


def test_in_the_world_points_are_where_the_frame_has_them_not_an_image(tmp_path: Path) -> None:
    frames = make_frames(2)
    for image in frames[1].images:
        image.pose.transform[3] += 5.0
    lake = build_frames(tmp_path, frames).lake
    write_recording(lake, "train", SEGMENT, tmp_path / "scene.rrd", coordinates="world")
    first, second = (np.array(frame.pose.transform).reshape(4, 4) for frame in frames)
    moved = logged_values(tmp_path / "scene.rrd", "/vehicle", "Transform3D:translation")
    np.testing.assert_allclose(moved[1][0], (np.linalg.inv(first) @ second)[:3, 3], atol=1e-5)


def test_a_frame_without_a_pose_is_refused_in_the_world_alone(tmp_path: Path) -> None:
    frames = make_frames(2)
    frames[1].ClearField("pose")
    lake = build_frames(tmp_path, frames).lake
    remedy = f"segment {SEGMENT} has no pose at {frames[1].timestamp_micros}: leave out --coordinates world"
    with pytest.raises(LakeError, match=remedy):
        write_recording(lake, "train", SEGMENT, tmp_path / "scene.rrd", coordinates="world")
    assert write_recording(lake, "train", SEGMENT, tmp_path / "scene.rrd") == len(frames)


def test_only_images_for_which_the_condition_holds_are_recorded(drive_lake: Lake, tmp_path: Path, call: Call) -> None:
    words = ["view", "--lake", drive_lake.store.url, "--out", str(tmp_path / "one.rrd"), "--color", "intensity"]
    status, printed, _ = call(main, [*words, "--where", "camera = 'FRONT_LEFT'"])
    assert status == 0
    assert f"{DRIVE_FRAMES} frames: rerun {tmp_path}/one.rrd" in printed
    entities = logged_rows(tmp_path / "one.rrd")
    assert "/vehicle/FRONT_LEFT/image" in entities
    assert not [entity for entity in entities if entity.startswith("/vehicle/FRONT/")]


def test_without_rerun_one_line_says_what_to_install(
    drive_lake: Lake, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    line = call.refused(main, ["view", "--lake", drive_lake.store.url, "--out", str(tmp_path / "scene.rrd")])
    assert "a recording needs rerun, not installed here: pip install 'classroomnet[view]'" in line
    assert not list(tmp_path.iterdir())


def test_a_recording_that_fails_leaves_no_file(drive_lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="has no segment 'none'"):
        write_recording(drive_lake, "train", "none", tmp_path / "scene.rrd")

    def fail(*_: object) -> list[ImageLayers]:
        raise LakeError("no teacher here")

    with pytest.raises(LakeError, match="no teacher here"):
        write_recording(
            drive_lake, "train", drive_lake.commits[0].segment, tmp_path / "scene.rrd", frames=1, layers=fail
        )
    assert not list(tmp_path.iterdir())
