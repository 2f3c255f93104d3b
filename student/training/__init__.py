"""Training of a student: what it is told, the losses, the loop, and a run that can be killed at any time."""
