"""A student's detections, collected for Waymo's own tools."""

from __future__ import annotations

from datalake.sample import Sample
from datalake.sources.waymo_v1.objects import objects_message
from student.detections import Detections
from training.run_dir import RunDir


class Submission:
    """The detections of an evaluation as one `Objects` message, in pixels of the records' images."""

    def __init__(self) -> None:
        self._message = bytearray()

    def add(self, sample: Sample, found: Detections) -> None:
        """Add one image; `found` is in pixels of the sample's image, of which the record's may be another size."""
        assert sample.record_size is not None, "samples of a lake say how large the record's image is"
        height, width = sample.image.shape[1:]
        scale = found.boxes.new_tensor([sample.record_size[0] / width, sample.record_size[1] / height] * 2)
        self._message += objects_message(
            sample.key, (found.boxes * scale).numpy(), found.classes.numpy(), found.scores.numpy()
        )

    def write(self, url: str) -> None:
        """Write the message to a path or an fsspec URL, all of it or nothing."""
        folder, _, name = url.rpartition("/")
        RunDir(folder).write(name, bytes(self._message))
