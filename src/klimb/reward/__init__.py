"""Text in, score out: Python functions, preference models, and weighted sums of them."""
