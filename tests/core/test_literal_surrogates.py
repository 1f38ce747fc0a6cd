"""Score weights of every value of every axis against finite differences of the surrogate as it is written."""

import numpy as np
import pytest

from klimb.core.score_weights import find_score_weights
from literal_surrogates import IS_TOKEN, OBJECTIVES, covered, random_completions, surrogate


@pytest.mark.parametrize("axis", covered())
def test_the_objectives_have_every_value_of_an_axis(axis):
    found, there_are = covered()[axis]
    assert found == there_are


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_score_weights_are_finite_differences_of_the_literal_surrogate(objective, seed):
    new, batch, denominators = random_completions(seed)
    weights = find_score_weights(new, batch, objective, denominators).weights
    expected, step = np.zeros_like(new), 1e-6
    for place in zip(*np.nonzero(IS_TOKEN), strict=True):
        change = np.zeros_like(new)
        change[place] = step
        above, below = (surrogate(objective, new + sign * change, batch, new) for sign in (1, -1))
        expected[place] = (above - below) / (2 * step)
    np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=2e-9)


def test_both_sides_of_each_bound_occur_among_the_random_completions():
    new, batch, denominators = random_completions()
    for name in ("clipped", "clipped_geometric", "probability_bounded", "clipped sequence"):
        trust = find_score_weights(new, batch, OBJECTIVES[name], denominators).trust[IS_TOKEN]
        assert 0 < (trust == 0).mean() < 1, name
    for name in ("clipped", "gamma", "clipped_geometric", "probability_bounded", "soft"):
        correction = find_score_weights(new, batch, OBJECTIVES[name], denominators).correction[IS_TOKEN]
        assert len(np.unique(correction)) > 1, name
    drifted = find_score_weights(new, batch, OBJECTIVES["truncated"], denominators).masked["max_drift"]
    assert 0 < drifted.sum() < IS_TOKEN.sum()
