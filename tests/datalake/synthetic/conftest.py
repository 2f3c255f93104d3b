from __future__ import annotations

import pytest

from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.synthetic import DriveConfig, simulate_segment

TINY = DriveConfig(image_width=96, image_height=64, beams=16, columns=80)
SMALL = DriveConfig(image_width=192, image_height=128, beams=32, columns=300, cameras=("FRONT", "SIDE_LEFT"))


@pytest.fixture(scope="session")
def frames() -> list[dataset_pb2.Frame]:
    """Two frames each of eight segments."""
    return [
        dataset_pb2.Frame.FromString(record) for index in range(8) for record in simulate_segment(SMALL, 5, index, 2)
    ]
