"""Statements about the equations, each proved by enumeration, quadrature, or published figures."""

import itertools
import math

import numpy as np
import pytest
import torch

import klimb
from klimb import exact_kl, k1, k2, k3
from klimb.core.advantages import BASELINES


def log_softmax(logits):
    return logits - np.log(np.sum(np.exp(logits)))


def test_repeated_steps_converge_to_the_closed_form_optimum():
    """π* ∝ π_ref · exp(r/β), where the objective is β · log E_ref[exp(r/β)]."""
    rng = np.random.default_rng(0)
    beta, rewards = 0.5, rng.normal(size=4)
    reference = log_softmax(rng.normal(size=4))
    logits = reference.copy()
    for _ in range(4000):
        log_probs = log_softmax(logits)
        probs = np.exp(log_probs)
        # Each outcome is a row, weighted by V·π so that the mean over rows is the expectation.
        log_prob_grads = 4 * probs[:, None] * (np.eye(4) - probs)
        logits = klimb.rlhf_weight_update(logits, rewards, log_probs, reference, log_prob_grads, beta, lr=2.0)
    optimum = log_softmax(reference + rewards / beta)
    np.testing.assert_allclose(np.exp(log_softmax(logits)), np.exp(optimum), atol=1e-6)
    log_probs = log_softmax(logits)
    objective = np.exp(log_probs) @ rewards - beta * float(exact_kl(log_probs, reference))
    assert objective == pytest.approx(beta * np.log(np.exp(reference) @ np.exp(rewards / beta)), abs=1e-6)


def moments(estimator, shift):
    """Mean and standard deviation of an estimator for π = N(0, 1), π_ref = N(shift, 1), by quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(100)
    weights = weights / weights.sum()
    values = estimator(-(points**2) / 2, -((points - shift) ** 2) / 2)
    mean = weights @ values
    return mean, np.sqrt(weights @ (values - mean) ** 2)


@pytest.mark.parametrize("m", [0.1, 1.0])
def test_bias_and_spread_of_the_estimators_between_normals(m):
    true = m**2 / 2
    expected = {
        k1: (0, 2 / m),
        k2: (m**2 / 4, math.sqrt(2 + m**2)),
        k3: (0, math.sqrt(math.exp(m**2) - 1 - m**2) / true),
    }
    for estimator, (bias, spread) in expected.items():
        mean, deviation = moments(estimator, m)
        assert mean / true - 1 == pytest.approx(bias, abs=1e-9)
        assert deviation / true == pytest.approx(spread, rel=1e-9)


def test_the_figures_that_schulman_prints():
    # joschu.net/blog/kl-approx.html: bias/true and std/true at true KL 0.005 and 0.5.
    printed = {
        0.1: {k1: (0, 20), k2: (0.002, 1.42), k3: (0, 1.42)},
        1.0: {k1: (0, 2), k2: (0.25, 1.73), k3: (0, 1.7)},
    }
    for m, rows in printed.items():
        for estimator, (bias, spread) in rows.items():
            mean, deviation = moments(estimator, m)
            assert mean / (m**2 / 2) - 1 == pytest.approx(bias, abs=6e-4)
            assert deviation / (m**2 / 2) == pytest.approx(spread, rel=1e-2)


def expected_loss_gradient(estimator, logits, reference):
    """E_y[∇ k(y)], with the samples' distribution held constant, as when k is used as a loss."""
    total = torch.zeros_like(logits)
    probs = torch.softmax(logits, 0).detach()
    for outcome in range(len(logits)):
        variable = logits.detach().clone().requires_grad_()
        log_prob = torch.log_softmax(variable, 0)[outcome]
        (gradient,) = torch.autograd.grad(estimator(log_prob, reference[outcome]), variable)
        total += probs[outcome] * gradient
    return total


def test_what_the_estimators_do_as_a_loss():
    """E∇k1 = 0, E∇k2 = ∇KL(π‖π_ref), E∇k3 = ∇KL(π_ref‖π)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, generator=generator).requires_grad_()
    reference = torch.log_softmax(torch.randn(5, dtype=torch.float64, generator=generator), 0)
    policy = torch.log_softmax(logits, 0)
    (forward,) = torch.autograd.grad(exact_kl(policy, reference), logits, retain_graph=True)
    (backward,) = torch.autograd.grad(exact_kl(reference, policy), logits)
    for estimator, expected in ((k1, torch.zeros(5, dtype=torch.float64)), (k2, forward), (k3, backward)):
        torch.testing.assert_close(
            expected_loss_gradient(estimator, logits, reference), expected, rtol=0, atol=1e-14
        )


@pytest.fixture(scope="module")
def five_arms():
    """Mean and total variance of the gradient over all 625 groups of four, for each baseline."""
    rng = np.random.default_rng(3)
    logits, rewards = rng.normal(size=5), rng.normal(size=5) + 1.0
    probs = np.exp(log_softmax(logits))
    log_prob_grads = np.eye(5) - probs
    groups = [list(group) for group in itertools.product(range(5), repeat=4)]
    chances = np.array([np.prod(probs[group]) for group in groups])
    results = {}
    for name, baseline in BASELINES.items():
        gradients = np.array(
            [
                klimb.reinforce_gradient(baseline(rewards[group][None])[0], log_prob_grads[group])
                for group in groups
            ]
        )
        mean = chances @ gradients
        results[name] = mean, float(chances @ np.sum((gradients - mean) ** 2, axis=1))
    return (probs * rewards) @ log_prob_grads, results


def test_no_baseline_and_leave_one_out_are_unbiased_over_five_arms(five_arms):
    true, results = five_arms
    for name in ("none", "leave_one_out"):
        np.testing.assert_allclose(results[name][0], true, atol=1e-14)


def test_subtracting_the_groups_own_mean_scales_the_gradient_by_three_quarters(five_arms):
    true, results = five_arms
    np.testing.assert_allclose(results["batch_mean"][0], 0.75 * true, atol=1e-14)


def test_normalising_by_the_group_is_biased_in_length_and_direction(five_arms):
    true, results = five_arms
    mean = results["group_normalised"][0]
    cosine = mean @ true / np.linalg.norm(mean) / np.linalg.norm(true)
    length = np.linalg.norm(mean) / np.linalg.norm(true)
    # Both figures are this enumeration's own: dividing by the spread weighs groups so differently that the
    # expected step is far from the gradient of the mean reward.
    assert cosine == pytest.approx(0.2066, abs=1e-4)
    assert length == pytest.approx(0.8063, abs=1e-4)


def test_the_variances_are_ordered(five_arms):
    _, results = five_arms
    assert results["batch_mean"][1] < results["leave_one_out"][1] < results["none"][1]
    # Leave-one-out is the group's mean scaled up by 4/3, so its variance is (4/3)² as large.
    assert results["leave_one_out"][1] == pytest.approx((4 / 3) ** 2 * results["batch_mean"][1])


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_divergence_of_best_of_n(n):
    """Of outcomes in order of reward, best-of-n takes the top u with density n·uⁿ⁻¹: KL = ln n − (n − 1)/n."""
    edges = np.linspace(0, 1, 200_001)
    best_of_n = np.log(np.diff(edges**n))
    uniform = np.log(np.diff(edges))
    assert float(exact_kl(best_of_n, uniform)) == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-5)


def test_whitening_against_the_published_figures():
    # Rewards 1.2 … 2.0 as 3 × 3, biased variance, mean kept: (1.2 − 1.6)/0.2582 + 1.6 = 0.0508, and 3.1492.
    rewards = np.arange(12, 21).reshape(3, 3) / 10
    whitened = klimb.whiten(rewards, keep_mean=True)
    assert whitened[0, 0] == pytest.approx(0.0508, abs=5e-5)
    assert whitened[-1, -1] == pytest.approx(3.1492, abs=5e-5)
    centred = klimb.whiten(rewards, keep_mean=False)
    assert float(np.mean(centred)) == pytest.approx(0, abs=1e-12)
    assert float(np.std(centred)) == pytest.approx(1, abs=1e-6)


def test_the_adaptive_coefficient_by_hand():
    # Target 6, horizon 10,000, error clipped at ±0.2, β₀ = 0.15, 256 samples at KL 12: error 1, clipped to 0.2,
    # so β grows by 0.2 · 256/10,000; at KL 3 it shrinks by as much; at KL 6.6 by the error itself, 0.1.
    settings = {"target": 6.0, "horizon": 10_000, "num_samples": 256, "clip": 0.2}
    assert klimb.adaptive_beta(0.15, 12.0, **settings) == pytest.approx(0.15 * (1 + 0.2 * 0.0256))
    assert klimb.adaptive_beta(0.15, 3.0, **settings) == pytest.approx(0.15 * (1 - 0.2 * 0.0256))
    assert klimb.adaptive_beta(0.15, 6.6, **settings) == pytest.approx(0.15 * (1 + 0.1 * 0.0256))
    assert klimb.adaptive_beta(0.15, 6.0, **settings) == 0.15


def test_the_adaptive_coefficient_refuses_what_has_no_meaning():
    with pytest.raises(ValueError, match="target: expected a number above 0"):
        klimb.adaptive_beta(0.1, 1.0, target=0.0, horizon=100, num_samples=1)
    with pytest.raises(ValueError, match="horizon: expected a number above 0"):
        klimb.adaptive_beta(0.1, 1.0, target=1.0, horizon=0, num_samples=1)
    with pytest.raises(ValueError, match="beta: expected a finite number of at least 0"):
        klimb.adaptive_beta(-0.1, 1.0, target=1.0, horizon=100, num_samples=1)
