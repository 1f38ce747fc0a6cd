"""The unit of a learned reward, which judgements leave open: one standard deviation between answers to one prompt.

Axes: n texts.
"""

import numpy as np
from jaxtyping import Float, Int


def spread_within(scores: Float[np.ndarray, " n"], prompts: Int[np.ndarray, " n"]) -> float:
    """Find how far scores of answers to the same prompt lie apart.

    σ² = Σ_p Σ_{i∈p} (s_i − s̄_p)² / Σ_p (n_p − 1),  p the prompts with two answers or more

    Where every text has a prompt of its own, or none, σ is the standard deviation over all texts.

    Args:
        scores: Of the texts.
        prompts: Number of each text's prompt.

    Returns:
        σ; 0 where all scores are the same.
    """
    counts = np.bincount(prompts)
    if counts.max() < 2:
        prompts, counts = np.zeros_like(prompts), np.array([len(prompts)])
    values = scores.astype(np.float64)
    centred = values - (np.bincount(prompts, values) / np.maximum(counts, 1))[prompts]
    degrees = np.maximum(counts - 1, 0).sum()
    return float(np.sqrt(np.sum(centred**2) / degrees)) if degrees else 0.0
