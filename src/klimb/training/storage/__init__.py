"""A run's folder: lines, checkpoints, and how it resumes."""
