"""Pairwise comparison of completions: pairs to label, and one model against another."""
