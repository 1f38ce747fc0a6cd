"""Surrogates: their gradient is the policy gradient."""

import numpy as np
import pytest
import torch

from klimb import reinforce, reinforce_gradient


def linear_log_probs(weights, features):
    """Log-probs that are linear in the weights, so that their gradients are the features."""
    return features @ weights


def test_the_value_by_hand():
    # (2·(−1) − 1·(−3)) / 2 = ½
    assert float(reinforce([-1.0, -3.0], [2.0, -1.0], num_samples=2)) == 0.5


def test_its_gradient_is_the_reinforce_gradient():
    rng = np.random.default_rng(0)
    features, advantages = rng.normal(size=(6, 3)), rng.normal(size=6)
    weights = torch.tensor(rng.normal(size=3), requires_grad=True)
    log_probs = linear_log_probs(weights, torch.from_numpy(features))
    reinforce(log_probs, torch.from_numpy(advantages), num_samples=6).backward()
    assert weights.grad is not None
    np.testing.assert_allclose(weights.grad.numpy(), reinforce_gradient(advantages, features), rtol=1e-13)


def test_its_gradient_matches_finite_differences():
    rng = np.random.default_rng(1)
    log_probs, advantages = -rng.exponential(size=5), rng.normal(size=5)
    tensor = torch.tensor(log_probs, requires_grad=True)
    reinforce(tensor, torch.from_numpy(advantages), num_samples=5).backward()
    step = 1e-6
    finite_differences = [
        float(
            reinforce(log_probs + step * unit, advantages, 5)
            - reinforce(log_probs - step * unit, advantages, 5)
        )
        / (2 * step)
        for unit in np.eye(5)
    ]
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad.numpy(), finite_differences, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_micro_batches_add_up_to_the_whole(size):
    rng = np.random.default_rng(2)
    log_probs, advantages = -rng.exponential(size=7), rng.normal(size=7)
    parts = sum(
        float(reinforce(log_probs[start : start + size], advantages[start : start + size], num_samples=7))
        for start in range(0, 7, size)
    )
    assert parts == pytest.approx(float(reinforce(log_probs, advantages, num_samples=7)), rel=1e-14)


def test_torch_and_numpy_agree():
    rng = np.random.default_rng(3)
    log_probs, advantages = -rng.exponential(size=5), rng.normal(size=5)
    from_torch = reinforce(torch.from_numpy(log_probs), torch.from_numpy(advantages), num_samples=5)
    assert float(from_torch) == pytest.approx(
        float(reinforce(log_probs, advantages, num_samples=5)), rel=1e-14
    )


def test_bad_input_names_the_argument():
    with pytest.raises(ValueError, match=r"log_probs: expected shape \(n,\), got \(1, 1\)"):
        reinforce([[-1.0]], [1.0], num_samples=1)
    with pytest.raises(ValueError, match="log_probs: expected at least one sample"):
        reinforce([], [], num_samples=1)
    with pytest.raises(ValueError, match=r"advantages: expected shape \(1,\), got \(2,\)"):
        reinforce([-1.0], [1.0, 1.0], num_samples=1)
    with pytest.raises(ValueError, match="advantages: expected finite"):
        reinforce([-1.0], [float("nan")], num_samples=1)
    with pytest.raises(ValueError, match="num_samples: expected at least the 2 samples given, got 1"):
        reinforce([-1.0, -1.0], [1.0, 1.0], num_samples=1)
