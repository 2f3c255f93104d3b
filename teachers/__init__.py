"""Frozen teachers: networks on lidar points and images whose predictions the student is distilled from."""
