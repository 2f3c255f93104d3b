"""What one GPU computes and how fast, measured in minutes: `python -m benchmarks.gpu`."""
