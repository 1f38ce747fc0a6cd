"""Evaluations of a policy, and which of its weights are the best."""
