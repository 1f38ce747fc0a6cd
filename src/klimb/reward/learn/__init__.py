"""Fitting a reward to feedback."""
