"""The official protocol buffers of the Waymo Open Dataset, imported in this one place.

Only the generated `*_pb2` modules of the official package are used; the package's own dependencies
(TensorFlow and more) are neither needed nor installed.
"""

from datalake.missing_package import MissingPackageError

try:
    from waymo_open_dataset import dataset_pb2, label_pb2
    from waymo_open_dataset.protos import camera_segmentation_pb2, metrics_pb2, segmentation_pb2
except ModuleNotFoundError as error:
    raise MissingPackageError(
        f"the official Waymo protocol buffers are missing ({error.name}): run `make setup`, or"
        " pip install --no-deps waymo-open-dataset-tf-2-12-0==1.6.7"
    ) from error

__all__ = ["camera_segmentation_pb2", "dataset_pb2", "label_pb2", "metrics_pb2", "segmentation_pb2"]
