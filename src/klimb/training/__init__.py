"""The run: configuration, step, checkpoint, metrics, report."""
