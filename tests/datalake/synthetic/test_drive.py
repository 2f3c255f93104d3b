from __future__ import annotations

import io

import numpy as np
from PIL import Image

from datalake.sources.waymo_v1.protos import dataset_pb2, label_pb2, segmentation_pb2
from datalake.synthetic import DriveConfig, segment_name, simulate_segment
from datalake.synthetic.camera import Camera
from datalake.synthetic.materials import LIDAR_CLASS, Kind
from datalake.synthetic.visibility import cast
from datalake.synthetic.world import VIEW_M, World
from tests.datalake.synthetic.conftest import TINY
from tests.datalake.synthetic.scan import cloud, matrix, panoptic, transform

Label = label_pb2.Label


def test_the_same_arguments_give_the_same_bytes() -> None:
    assert list(simulate_segment(TINY, 1, 0, 2)) == list(simulate_segment(TINY, 1, 0, 2))


def test_a_frame_does_not_depend_on_how_many_follow_but_for_its_segments_name() -> None:
    alone, first = next(simulate_segment(TINY, 1, 0, 1)), next(simulate_segment(TINY, 1, 0, 5))
    name, other = (segment_name(TINY, 1, 0, frames).encode() for frames in (1, 5))
    assert name != other
    assert alone.replace(name, other) == first


def test_seeds_and_indices_give_different_drives() -> None:
    firsts = [next(simulate_segment(TINY, seed, index, 1)) for seed, index in ((1, 0), (1, 1), (2, 0))]
    names = [dataset_pb2.Frame.FromString(first).context.name for first in firsts]
    assert len(set(names)) == 3
    images = [dataset_pb2.Frame.FromString(first).images[0].image for first in firsts]
    assert len(set(images)) == 3


def test_images_have_their_calibrations_size(frames: list[dataset_pb2.Frame]) -> None:
    for frame in frames[:2]:
        sizes = {c.name: (c.width, c.height) for c in frame.context.camera_calibrations}
        for image in frame.images:
            assert Image.open(io.BytesIO(image.image)).size == sizes[image.name]


def test_points_lie_on_the_surface_that_the_camera_sees() -> None:
    config = DriveConfig(image_width=192, image_height=128, beams=32, columns=300)
    camera = Camera.mount("FRONT", 192, 128)
    for index in range(3):
        frame = dataset_pb2.Frame.FromString(next(simulate_segment(config, 5, index, 1)))
        points = cloud(frame)
        seen = points.projection[:, 0] == dataset_pb2.CameraName.FRONT
        camera_to_world = transform(frame.images[0].pose) @ transform(frame.context.camera_calibrations[0].extrinsic)
        world = transform(frame.pose)
        in_world = points.xyz[seen] @ world[:3, :3].T + (world[:3, 3] - camera_to_world[:3, 3])
        depth = np.linalg.norm(in_world, axis=1)
        scene = World.draw(np.random.default_rng(np.random.SeedSequence([5, index])))
        solids = scene.at(0.0).primitives
        pose = scene.ride.vehicle_to_scene(camera.exposure_s) @ camera.camera_to_vehicle
        hits = cast(camera.rays(pose), solids, camera.view(solids, pose), scene.layout.streets, VIEW_M)
        u, v = points.projection[seen, 1], points.projection[seen, 2]
        # The ground runs away within a pixel, and edges hide what only one sensor sees.
        assert (np.abs(hits.distance_m[v, u] - depth) < 0.15 + 0.03 * depth).mean() > 0.95
        classes = LIDAR_CLASS[np.where(hits.primitive >= 0, solids.kind[hits.primitive], hits.ground_kind)]
        assert (classes[v, u] == points.semantic_class[seen]).mean() > 0.92


def test_projections_are_those_of_the_points(frames: list[dataset_pb2.Frame]) -> None:
    for frame in frames[:4]:
        points = cloud(frame)
        for name, image, calibration in zip(
            ("FRONT", "SIDE_LEFT"), frame.images, frame.context.camera_calibrations, strict=True
        ):
            camera = Camera.mount(name, 192, 128)
            camera_to_world = transform(image.pose) @ transform(calibration.extrinsic)
            world = transform(frame.pose)
            offset = points.xyz @ world[:3, :3].T + world[:3, 3] - camera_to_world[:3, 3]
            u, v, inside = camera.project((offset @ camera_to_world[:3, :3]).T)
            given = points.projection[:, 0] == image.name
            assert (given == inside).mean() > 0.995
            both = given & inside
            assert np.abs(points.projection[both, 1] + 0.5 - u[both]).max() < 0.6
            assert np.abs(points.projection[both, 2] + 0.5 - v[both]).max() < 0.6


def test_2d_boxes_are_tight_around_the_pixels_of_their_instance(frames: list[dataset_pb2.Frame]) -> None:
    checked = 0
    for frame in frames:
        for camera, labels in enumerate(frame.camera_labels):
            instances = panoptic(frame, camera) % 1000
            for label in labels.labels:
                rows, columns = np.nonzero(instances == int(label.id.rsplit("_", 1)[1]) + 1)
                box = label.box
                assert box.center_x - box.length / 2 == columns.min()
                assert box.center_x + box.length / 2 == columns.max() + 1
                assert box.center_y - box.width / 2 == rows.min()
                assert box.center_y + box.width / 2 == rows.max() + 1
                checked += 1
    assert checked > 20


def test_points_inside_3d_boxes_carry_the_class_of_the_box(frames: list[dataset_pb2.Frame]) -> None:
    classes = {
        Label.TYPE_VEHICLE: (Kind.CAR, Kind.TRUCK, Kind.BUS),
        Label.TYPE_PEDESTRIAN: (Kind.PEDESTRIAN,),
        Label.TYPE_CYCLIST: (Kind.CYCLIST,),
        Label.TYPE_SIGN: (Kind.SIGN,),
    }
    total = right = counted = 0
    for frame in frames:
        points = cloud(frame)
        for label in frame.laser_labels:
            box = label.box
            cos, sin = np.cos(box.heading), np.sin(box.heading)
            offset = points.xyz - [box.center_x, box.center_y, box.center_z]
            along, across = offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin
            inside = (np.abs(along) < box.length / 2) & (np.abs(across) < box.width / 2)
            # Wheels stand on the ground, whose points carry its own class.
            inside &= (offset[:, 2] > 0.1 - box.height / 2) & (offset[:, 2] < box.height / 2)
            total += int(inside.sum())
            right += int(np.isin(points.semantic_class[inside], LIDAR_CLASS[list(classes[label.type])]).sum())
            counted += label.num_lidar_points_in_box
    assert total > 1000
    assert right / total > 0.97
    assert counted > total


def test_pixel_poses_follow_the_vehicle() -> None:
    found = []
    for index in range(6):
        records = simulate_segment(TINY, 3, index, 2)
        now, later = (dataset_pb2.Frame.FromString(record) for record in records)
        poses = matrix(now.lasers[0].ri_return1.range_image_pose_compressed, dataset_pb2.MatrixFloat)
        start, end = transform(now.pose)[:3, 3], transform(later.pose)[:3, 3]
        step = np.linalg.norm(end - start)
        swept = np.linalg.norm(poses[0, -1, 3:] - poses[0, 0, 3:])
        assert np.array_equal(poses[0], poses[-1])
        assert np.linalg.norm(poses[0, 0, 3:] - start) < 0.02 + step / 40
        assert abs(swept - step * 79 / 80) < 0.02
        found.append(step)
    assert max(found) > 0.4


def test_frames_are_a_tenth_of_a_second_apart(frames: list[dataset_pb2.Frame]) -> None:
    for first, second in zip(frames[::2], frames[1::2], strict=True):
        assert second.timestamp_micros - first.timestamp_micros == 100_000
        assert 0.02 <= first.images[0].pose_timestamp - first.timestamp_micros / 1e6 <= 0.07


def test_tracks_keep_their_identity(frames: list[dataset_pb2.Frame]) -> None:
    for first, second in zip(frames[::2], frames[1::2], strict=True):
        before, after = ({label.id: label.type for label in frame.laser_labels} for frame in (first, second))
        shared = before.keys() & after.keys()
        assert len(shared) > 0.7 * len(before)
        assert all(before[name] == after[name] for name in shared)


def test_both_returns_are_there_and_second_ones_are_rare(frames: list[dataset_pb2.Frame]) -> None:
    first = sum(len(cloud(frame, 0).xyz) for frame in frames)
    second = sum(len(cloud(frame, 1).xyz) for frame in frames)
    assert 0.003 * first < second < 0.2 * first


def test_points_without_return_have_no_label_and_no_projection(frames: list[dataset_pb2.Frame]) -> None:
    for found in (frames[0].lasers[0].ri_return1, frames[0].lasers[0].ri_return2):
        image = matrix(found.range_image_compressed, dataset_pb2.MatrixFloat)
        missing = image[..., 0] <= 0
        assert missing.any()
        assert (image[missing][:, 0] == -1).all()
        assert not matrix(found.segmentation_label_compressed, dataset_pb2.MatrixInt32)[missing].any()
        assert not matrix(found.camera_projection_compressed, dataset_pb2.MatrixInt32)[missing].any()


def test_scenes_are_plausibly_full(frames: list[dataset_pb2.Frame]) -> None:
    types = [label.type for frame in frames for label in frame.camera_labels[0].labels]
    assert 2 < len(types) / len(frames) < 20
    assert types.count(Label.TYPE_VEHICLE) > types.count(Label.TYPE_PEDESTRIAN) > types.count(Label.TYPE_CYCLIST)
    classes = np.concatenate([cloud(frame).semantic_class for frame in frames])
    wanted = segmentation_pb2.Segmentation
    for kind in (wanted.TYPE_CAR, wanted.TYPE_ROAD, wanted.TYPE_BUILDING, wanted.TYPE_SIDEWALK, wanted.TYPE_VEGETATION):
        assert (classes == kind).sum() > 50
