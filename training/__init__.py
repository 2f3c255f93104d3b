"""The engine that trains everything: student, teachers and, later, pre-training."""
