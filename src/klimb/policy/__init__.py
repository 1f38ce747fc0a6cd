"""A causal language model and its frozen reference: load, chat template, sample, log-probs."""
