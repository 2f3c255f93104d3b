"""Frozen networks that look at the same frames through other eyes, for the student to imitate."""
