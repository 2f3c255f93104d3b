"""Evaluation of a student: metrics of detection, proposals, depth and imitation."""
