"""Pre-training of the student's trunk on drives without labels: pairs, views, and one file for each method."""
