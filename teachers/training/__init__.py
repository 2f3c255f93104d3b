"""Training of teachers from a lake's own labels: point classes for SPVCNN, panoptic masks for Mask R-CNN."""
