"""Experiment trackers: trackio, TensorBoard, W&B and MLflow, each an observer of the run."""
