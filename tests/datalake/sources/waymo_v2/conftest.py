"""A segment of Waymo 2.x in components: the official frame, also as several frames and row groups."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from datalake.source_list import list_sources
from tests.lakes import Built, build_files

TIME = "key.frame_timestamp_micros"
STEP_US = 100_000


@pytest.fixture(scope="session")
def components(real_data: Path) -> Path:
    """The folder of components that the official classes wrote."""
    return real_data / "waymo_v2"


@pytest.fixture
def small(components: Path, tmp_path: Path) -> Path:
    """Folder of components of three frames; a row group a frame; without the large range images of TOP."""
    folder = tmp_path / "small"
    for source in components.glob("*/*.parquet"):
        table = pq.read_table(source)
        if "key.laser_name" in table.column_names:
            table = table.filter(pc.not_equal(table["key.laser_name"], 1))
        write_frames(folder / source.parent.name / source.name, table, range(3))
    return folder


def write_frames(path: Path, table: pa.Table, frames: range) -> None:
    """Write the rows of one frame as those of several, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if TIME not in table.column_names:
        pq.write_table(table, path)
        return
    place = table.column_names.index(TIME)
    with pq.ParquetWriter(path, table.schema) as writer:
        for frame in frames:
            times = pc.add(table[TIME], frame * STEP_US).cast(table.schema.field(TIME).type)
            writer.write_table(table.set_column(place, table.schema.field(TIME), times))


@pytest.fixture
def build(tmp_path: Path) -> Callable[[Path], Built]:
    """Build a lake of a folder of components."""
    return lambda folder: build_files(str(tmp_path / "lake"), list_sources([str(folder)]))


@pytest.fixture
def without(components: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copy the components without one of them."""

    def copy(component: str) -> Path:
        folder = tmp_path / "fewer"
        shutil.copytree(components, folder, ignore=shutil.ignore_patterns(component, "*.npz"))
        return folder

    return copy
