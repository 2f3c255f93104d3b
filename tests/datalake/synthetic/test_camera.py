from __future__ import annotations

import numpy as np
import pytest

from datalake.synthetic.camera import CAMERA_NAMES, Camera


@pytest.mark.parametrize("name", CAMERA_NAMES)
def test_a_pixels_ray_projects_back_to_its_middle(name: str) -> None:
    camera = Camera.mount(name, 96, 64)
    v, u = np.mgrid[: camera.height, : camera.width] + 0.5
    points = camera.pixel_rays().reshape(3, -1) * 20
    found_u, found_v, inside = camera.project(points)
    assert inside.all()
    assert np.abs(found_u - u.ravel()).max() < 0.01
    assert np.abs(found_v - v.ravel()).max() < 0.01


def test_points_far_outside_do_not_fold_into_the_image() -> None:
    camera = Camera.mount("FRONT", 96, 64)
    outside = np.random.default_rng(0).normal(size=(3, 5000))
    outside[1] = np.sign(outside[1]) * (np.abs(outside[0]) * 0.7 + 0.5)
    assert not camera.project(outside)[2].any()


def test_side_images_are_less_high() -> None:
    assert Camera.mount("SIDE_LEFT", 1920, 1280).height == 886
