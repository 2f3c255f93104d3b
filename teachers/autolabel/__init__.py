"""Boxes that two teachers agree on: the mask teacher proposes them, the lidar teacher confirms or refutes them."""
