"""Distillation: the objective that trains a student, and one file for each method by which it learns from teachers."""
