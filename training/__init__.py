"""The engine that trains everything: student, teachers and pre-training."""
