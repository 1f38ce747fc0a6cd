"""Win rates: by hand, across libraries, and their invariances."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from klimb import KlimbError
from klimb.core.win_rate import outcomes_of_scores, prompt_win_rates, win_rate


@pytest.fixture
def said():
    """Outcomes with ties and split raters, (7, 4), and weights of which some are 0."""
    generator = np.random.default_rng(0)
    outcomes = generator.choice([-1.0, -0.5, 0.0, 1 / 3, 1.0], size=(7, 4))
    return outcomes, generator.choice([0.0, 1.0, 2.0], size=(7, 4), p=[0.2, 0.6, 0.2])


def test_a_win_rate_by_hand():
    # Two wins, a tie and a loss: (2 + 1/2) / 4. Two of three raters for A: o = 1/3, rate 2/3.
    assert win_rate([1, 1, 0, -1]) == 0.625
    assert win_rate([1 / 3]) == pytest.approx(2 / 3, rel=1e-15)
    # (3·1 + 1·0 + 0·1) / (3 + 1 + 0)
    assert win_rate([1, -1, 1], [3, 1, 0]) == 0.75


def test_rates_of_prompts_by_hand():
    # (1 + 1/2)/2; (0·1 + 2·0)/2; nothing counts.
    found = prompt_win_rates([[1, 0], [1, -1], [1, 1]], [[1, 1], [0, 2], [0, 0]])
    np.testing.assert_array_equal(found, [0.75, 0.0, math.nan])


def test_outcomes_by_hand():
    np.testing.assert_array_equal(outcomes_of_scores([3.0, 1.0, 2.0], [1.0, 3.0, 2.0]), [1, -1, 0])
    # At the margin itself it is a tie, above it is not.
    np.testing.assert_array_equal(outcomes_of_scores([1.0, 1.25, -1.25], [0.0] * 3, 1.0), [0, 1, -1])
    np.testing.assert_array_equal(outcomes_of_scores([np.nextafter(1.0, 2)], [1.0]), [1])


def test_it_is_wins_and_half_the_ties_over_all():
    outcomes = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], size=101)
    wins, ties = (outcomes == 1).sum(), (outcomes == 0).sum()
    assert win_rate(outcomes) == pytest.approx((wins + ties / 2) / 101, rel=1e-15)


def test_exchanging_the_models_gives_the_rest(said):
    outcomes, weights = said
    assert win_rate(-outcomes.ravel(), weights.ravel()) == pytest.approx(
        1 - win_rate(outcomes.ravel(), weights.ravel()), rel=1e-14
    )
    np.testing.assert_allclose(prompt_win_rates(-outcomes, weights), 1 - prompt_win_rates(outcomes, weights))
    scores = np.random.default_rng(2).normal(size=(2, 9)).round(1)
    np.testing.assert_array_equal(
        outcomes_of_scores(scores[0], scores[1], 0.3), -outcomes_of_scores(scores[1], scores[0], 0.3)
    )


def test_the_order_of_comparisons_does_not_matter(said):
    outcomes, weights = (array.ravel() for array in said)
    order = np.random.default_rng(3).permutation(len(outcomes))
    assert win_rate(outcomes[order], weights[order]) == pytest.approx(win_rate(outcomes, weights), rel=1e-14)
    np.testing.assert_allclose(
        prompt_win_rates(said[0][:, ::-1], said[1][:, ::-1]), prompt_win_rates(*said), rtol=1e-14
    )


def test_a_weight_of_two_is_the_comparison_twice():
    assert win_rate([1, -1, 0.5], [2, 1, 1]) == win_rate([1, 1, -1, 0.5])


def test_the_rate_of_all_is_the_weighted_mean_of_the_prompts(said):
    outcomes, weights = said
    rates, totals = prompt_win_rates(outcomes, weights), weights.sum(axis=1)
    assert win_rate(2 * rates - 1, totals) == pytest.approx(
        win_rate(outcomes.ravel(), weights.ravel()), rel=1e-14
    )


def test_all_ties_are_a_half():
    assert win_rate(np.zeros(5)) == 0.5
    np.testing.assert_array_equal(prompt_win_rates(np.zeros((2, 3))), [0.5, 0.5])


def test_a_prompt_without_comparisons_has_no_rate():
    assert np.isnan(prompt_win_rates(np.zeros((2, 0)))).all()
    assert prompt_win_rates(np.zeros((0, 3))).shape == (0,)


@pytest.mark.parametrize("make", [torch.tensor, jnp.asarray, np.ndarray.tolist])
def test_libraries_agree_in_float64(make, said):
    outcomes, weights = said
    assert win_rate(make(outcomes.ravel()), make(weights.ravel())) == pytest.approx(
        win_rate(outcomes.ravel(), weights.ravel()), rel=1e-14
    )
    np.testing.assert_allclose(
        np.asarray(prompt_win_rates(make(outcomes), make(weights))),
        prompt_win_rates(outcomes, weights),
        rtol=1e-14,
    )
    np.testing.assert_array_equal(
        np.asarray(outcomes_of_scores(make(outcomes), make(weights), 0.5)),
        outcomes_of_scores(outcomes, weights, 0.5),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: win_rate([[1.0]]), r"outcomes: expected shape \(M,\)"),
        (lambda: win_rate([1.0], [1.0, 1.0]), r"weights: expected shape \(1,\)"),
        (lambda: win_rate([1.5]), "outcomes: expected numbers from −1"),
        (lambda: win_rate([math.nan]), "outcomes: expected finite"),
        (lambda: win_rate([1.0], [-1.0]), "weights: expected numbers of at least 0"),
        (lambda: win_rate([1.0], [0.0]), "expected at least one above 0"),
        (lambda: win_rate(np.zeros(0)), "expected at least one above 0"),
        (lambda: prompt_win_rates([1.0]), r"outcomes: expected shape \(B, G\)"),
        (lambda: outcomes_of_scores([1.0], [1.0, 2.0]), r"scores_b: expected shape \(1,\)"),
        (lambda: outcomes_of_scores([math.inf], [1.0]), "scores_a: expected finite"),
        (lambda: outcomes_of_scores([1.0], [1.0], -1.0), "tie_margin: expected a finite number"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(KlimbError, match=message):
        call()
