"""Sparse 3D convolutions on plain torch, on Triton, or on torchsparse where it is there."""
