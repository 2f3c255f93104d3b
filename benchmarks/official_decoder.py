"""The peer of `build_speed.py`: the official package parses a file's frames and converts them to points.

Run by an interpreter of its own, which has TensorFlow and the whole official package (Python 3.11:
`pip install tensorflow-cpu==2.15.1`, then `pip install --no-deps waymo-open-dataset-tf-2-12-0==1.6.7`):

    python benchmarks/official_decoder.py FILE

Prints the milliseconds per frame on one thread, the best of the frames, as JSON. It does less than a build: it
writes nothing, and takes no labels, depths or images out.
"""

import json
import sys
import time

import tensorflow as tf
from waymo_open_dataset import dataset_pb2
from waymo_open_dataset.utils import frame_utils

# The package hands a bytearray to protobuf, whose version 4 takes bytes alone.
frame_utils.bytearray = bytes


def main(path: str) -> None:
    """Convert every frame of the file, both returns, and print the time."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    times_ms = []
    points = 0
    for payload in tf.data.TFRecordDataset(path):
        begun = time.perf_counter()
        frame = dataset_pb2.Frame()
        frame.ParseFromString(payload.numpy())
        ranges, projections, _, pose = frame_utils.parse_range_image_and_camera_projection(frame)
        for number in (0, 1):
            clouds, _ = frame_utils.convert_range_image_to_point_cloud(
                frame, ranges, projections, pose, ri_index=number
            )
            points += sum(len(cloud) for cloud in clouds)
        times_ms.append((time.perf_counter() - begun) * 1e3)
    print(json.dumps({"frame_ms": min(times_ms), "frames": len(times_ms), "points": points}))


if __name__ == "__main__":
    main(sys.argv[1])
