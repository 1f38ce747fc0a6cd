"""Completions of models that people and rewards judge: pairs to label, and one model against another."""
