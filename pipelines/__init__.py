"""The jobs: configuration, Ray, and nothing else."""
