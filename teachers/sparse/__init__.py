"""Sparse 3D convolutions on plain torch, or on torchsparse where it is there."""
