"""Bradley–Terry with ties: by hand, by finite differences, across libraries, and its invariances."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from klimb import KlimbError
from klimb.core.preferences import (
    preference_accuracy,
    preference_disagreement,
    preference_nll,
    preference_probabilities,
    reach_the_unseen,
)


def test_probabilities_by_hand():
    # d = 2 log 3, so e^{d/2} = 3 and e^{−d/2} = 1/3; with ν = 2/3, Z = 4.
    found = preference_probabilities(np.array([2 * math.log(3)]), tie=2 / 3)
    np.testing.assert_allclose(found, [[3 / 4, 1 / 12, 1 / 6]], rtol=1e-15)


def test_without_ties_it_is_the_logistic_function():
    margins = np.linspace(-4, 4, 9)
    found = preference_probabilities(margins)
    np.testing.assert_allclose(found[:, 0], 1 / (1 + np.exp(-margins)), rtol=1e-14)
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(preference_nll(margins, np.ones(9)), np.log1p(np.exp(-margins)), rtol=1e-14)


@pytest.mark.parametrize("tie", [0.0, 0.3, 5.0])
def test_the_loss_is_minus_the_log_of_what_was_said(tie):
    margins = np.array([-3.0, -0.5, 0.0, 2.0])
    chances = preference_probabilities(margins, tie)
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-14)
    for outcome, column in ((1, 0), (-1, 1), *([(0, 2)] if tie else [])):
        found = preference_nll(margins, np.full(4, outcome), tie)
        np.testing.assert_allclose(found, -np.log(chances[:, column]), rtol=1e-12, atol=1e-15)


def test_nothing_overflows():
    far = np.array([1e4, -1e4])
    np.testing.assert_array_equal(preference_probabilities(far, 0.5), [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(preference_nll(far, np.array([1, 1])), [0, 1e4])


def test_swapping_the_sides_swaps_what_was_said():
    margins, outcomes = np.array([0.3, -1.2, 2.0]), np.array([1.0, 0.0, -1.0])
    np.testing.assert_allclose(
        preference_nll(margins, outcomes, 0.7), preference_nll(-margins, -outcomes, 0.7), rtol=1e-15
    )


def test_gradients_by_finite_differences():
    margins = torch.tensor([-1.0, 0.4, 0.9, 3.0], dtype=torch.float64, requires_grad=True)
    outcomes = torch.tensor([1.0, 0.0, -1.0, 1.0], dtype=torch.float64)
    (found,) = torch.autograd.grad(preference_nll(margins, outcomes, 0.6).sum(), margins)
    at, step = margins.detach(), 1e-5
    expected = [
        (
            preference_nll(at + step * one, outcomes, 0.6).sum()
            - preference_nll(at - step * one, outcomes, 0.6).sum()
        )
        / (2 * step)
        for one in torch.eye(4, dtype=torch.float64)
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-8, atol=1e-9)


def test_the_gradient_is_what_was_expected_less_what_was_said():
    # dℓ/dd = (P(left) − P(right) − o) / 2
    margins = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    outcomes = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    (found,) = torch.autograd.grad(preference_nll(margins, outcomes, 0.4).sum(), margins)
    chances = preference_probabilities(margins.detach(), 0.4)
    torch.testing.assert_close(found, (chances[:, 0] - chances[:, 1] - outcomes) / 2)


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, jnp.asarray])
def test_libraries_agree_in_float64(make):
    margins, outcomes = [-1.5, 0.0, 0.25, 7.0], [1.0, 0.0, -1.0, 1.0]
    found = preference_nll(make(np.array(margins)), make(np.array(outcomes)), 0.8)
    expected = preference_nll(margins, outcomes, 0.8)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-14)
    assert preference_accuracy(make(np.array(margins)), make(np.array(outcomes))) == preference_accuracy(
        margins, outcomes
    )


def test_accuracy_leaves_ties_out_and_halves_equal_scores():
    assert preference_accuracy([1.0, -1.0, 0.0, 3.0], [1, 1, -1, 0]) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preference_nll([0.0], [1.0, 1.0]), r"outcomes: expected shape \(1,\)"),
        (lambda: preference_nll([0.0], [0.5]), "outcomes: expected 1 .left., −1 .right. or 0"),
        (lambda: preference_nll([0.0], [0.0]), "tie: expected ν above 0"),
        (lambda: preference_nll([math.nan], [1.0]), "margins: expected finite"),
        (lambda: preference_probabilities([[0.0]]), "margins: expected shape"),
        (lambda: preference_probabilities([0.0], -1.0), "tie: expected a finite number of at least 0"),
        (lambda: preference_accuracy([1.0], [0]), "expected at least one that is not a tie"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(KlimbError, match=message):
        call()


def test_disagreement_by_hand():
    # σ(log 3) = 3/4, σ(−log 3) = 1/4: the mean is 1/2, H = log 2; each member's H = log 4 − 3/4 log 3.
    margins = np.array([[math.log(3)], [-math.log(3)]])
    expected = math.log(2) - (math.log(4) - 0.75 * math.log(3))
    np.testing.assert_allclose(preference_disagreement(margins), [expected], rtol=1e-14)


def test_disagreement_is_the_information_that_an_answer_carries_about_the_member():
    # By enumeration: I = Σ_k Σ_o (1/K) p_k(o) log(p_k(o) / p(o)), o left or right.
    margins = np.random.default_rng(0).normal(size=(5, 7)) * 3
    left = 1 / (1 + np.exp(-margins))
    expected = 0
    for chances in (left, 1 - left):
        expected = expected + (chances * np.log(chances / chances.mean(axis=0))).mean(axis=0)
    np.testing.assert_allclose(preference_disagreement(margins), expected, rtol=1e-10, atol=1e-15)


def test_members_that_say_the_same_do_not_disagree_however_sure():
    margins = np.array([[0.0, 3.0, -1e4], [0.0, 3.0, -1e4], [0.0, 3.0, -1e4]])
    np.testing.assert_allclose(preference_disagreement(margins), 0, atol=1e-15)
    np.testing.assert_allclose(preference_disagreement([[1e4], [-1e4]]), [math.log(2)], rtol=1e-15)


def test_disagreement_does_not_depend_on_sides_or_order():
    margins = np.random.default_rng(1).normal(size=(4, 6))
    expected = preference_disagreement(margins)
    np.testing.assert_allclose(preference_disagreement(-margins), expected, rtol=1e-12)
    np.testing.assert_allclose(preference_disagreement(margins[::-1]), expected, rtol=1e-12)
    for make in (torch.tensor, jnp.asarray):
        np.testing.assert_allclose(np.asarray(preference_disagreement(make(margins))), expected, rtol=1e-12)


@pytest.mark.parametrize("margins", [np.zeros((0, 3)), [1.0, 2.0], [[np.nan]]])
def test_margins_of_no_ensemble_are_refused(margins):
    with pytest.raises(KlimbError, match="margins"):
        preference_disagreement(margins)


def test_an_interval_reaches_what_was_not_seen():
    # Eight of eight: Clopper and Pearson's lower end is 0.025^(1/8).
    assert reach_the_unseen(1.0, (1.0, 1.0), 8) == pytest.approx((0.025 ** (1 / 8), 1.0))
    assert reach_the_unseen(0.0, (0.0, 0.0), 8) == pytest.approx((0.0, 1 - 0.025 ** (1 / 8)))
    # One alone says next to nothing; of many, a wider bootstrap stands.
    assert reach_the_unseen(1.0, (1.0, 1.0), 1) == pytest.approx((0.025, 1.0))
    assert reach_the_unseen(0.8, (0.7, 0.9), 400) == (0.7, 0.9)
