"""SPVCNN and SPVNAS: semantic segmentation of lidar scans on sparse voxels and points (Tang et al., ECCV 2020)."""
