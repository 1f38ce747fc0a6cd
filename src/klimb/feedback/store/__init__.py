"""The database of comparisons."""
