"""Three completions of lengths 2, 1 and 3 with round ratios, whose score weights can be worked out by hand.

A       = 2            | −1    | 1
ρ       = 1.375 0.88   | 4     | 0.5 1.08 1.35      products 1.21, 4, 0.729; geometric means 1.1, 4, 0.9
π_old   = 0.4 0.5      | 0.2   | 0.6 0.5 0.4
d       = ln 2, 0      | −ln 2 | ln 1.5, 0, −ln 2
q       = 1 2.5        | 0.25  | 2 1 0.5            products 2.5, 0.25, 1; geometric means 1.5811, 0.25, 1
groups  = 0            | 1     | 1                  length limit 4
"""

import math
from dataclasses import replace

import numpy as np

from klimb.core.aggregation import count_denominators
from klimb.core.objective import Objective
from klimb.core.score_weights import TokenBatch, score_weights

NAN = float("nan")  # where there is no token anything may stand
IS_TOKEN = np.array([[True, True, False], [True, False, False], [True, True, True]])
LENGTHS, GROUPS, LIMIT = np.array([2.0, 1.0, 3.0]), np.array([0, 1, 1]), 4
ADVANTAGES = np.array([[2.0] * 3, [-1.0] * 3, [1.0] * 3])
RATIOS = np.array([[1.375, 0.88, NAN], [4.0, NAN, NAN], [0.5, 1.08, 1.35]])
OLD = np.log([[0.4, 0.5, NAN], [0.2, NAN, NAN], [0.6, 0.5, 0.4]])
NEW = OLD + np.log(RATIOS)
D = np.array([[math.log(2), 0.0, NAN], [-math.log(2), NAN, NAN], [math.log(1.5), 0.0, -math.log(2)]])
REFERENCE = NEW - D
SAMPLER = OLD - np.log([[1.0, 2.5, NAN], [0.25, NAN, NAN], [2.0, 1.0, 0.5]])
DENOMINATORS = count_denominators(LENGTHS, GROUPS, max_length=LIMIT)
BATCH = TokenBatch(IS_TOKEN, ADVANTAGES, OLD)
WITH_REFERENCE = replace(BATCH, ref_log_probs=REFERENCE)
PLAIN = Objective(ratio="none", trust_region="unbounded")
"""REINFORCE: the advantage alone, aggregated by the mean over tokens."""


def tokens(array):
    """The six tokens of an array, in order."""
    return np.asarray(array)[IS_TOKEN]


def weights_of(objective, batch=WITH_REFERENCE):
    """Score weights of the six tokens; those of padding are checked to be 0."""
    weights = score_weights(NEW, batch, objective, DENOMINATORS)
    assert (np.asarray(weights)[~IS_TOKEN] == 0).all()
    return tokens(weights)
