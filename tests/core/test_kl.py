"""KL estimators and the exact divergence."""

import numpy as np
import pytest
import torch

from klimb import exact_kl, k1, k2, k3

ESTIMATORS = [k1, k2, k3]


def log_softmax(logits):
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def two_distributions(num_outcomes=5, seed=0):
    rng = np.random.default_rng(seed)
    return log_softmax(rng.normal(size=num_outcomes)), log_softmax(rng.normal(size=num_outcomes))


def test_the_estimators_by_hand():
    # d = −1 − (−3) = 2:  k1 = 2,  k2 = 2²/2 = 2,  k3 = e⁻² − 1 + 2 = 1.1353352832366128
    assert k1([-1.0], [-3.0])[0] == 2.0
    assert k2([-1.0], [-3.0])[0] == 2.0
    assert k3([-1.0], [-3.0])[0] == pytest.approx(1.1353352832366128, rel=1e-15)


def test_the_exact_divergence_by_hand():
    # ½ ln(½ / ¼) + ½ ln(½ / ¾) = ½ ln 2 + ½ ln ⅔ = ½ ln (4/3)
    value = exact_kl(np.log([0.5, 0.5]), np.log([0.25, 0.75]))
    assert float(value) == pytest.approx(0.5 * np.log(4 / 3), rel=1e-14)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_average_to_the_exact_divergence(estimator):
    policy, reference = two_distributions()
    expectation = np.exp(policy) @ estimator(policy, reference)
    assert expectation == pytest.approx(float(exact_kl(policy, reference)), rel=1e-13)


def test_k2_is_biased():
    policy, reference = two_distributions()
    assert np.exp(policy) @ k2(policy, reference) != pytest.approx(
        float(exact_kl(policy, reference)), rel=1e-2
    )


@pytest.mark.parametrize("estimator", [k2, k3])
def test_k2_and_k3_are_never_negative(estimator):
    policy, reference = two_distributions(num_outcomes=50)
    assert np.all(estimator(policy, reference) >= 0)


def test_k3_keeps_its_digits_where_the_policies_nearly_agree():
    # For d = 1e-6 the series gives d²/2 − d³/6 = 5e-13 (1 − d/3); exp(−d) − 1 + d would lose six digits.
    assert k3([0.0], [-1e-6])[0] == pytest.approx(5e-13 * (1 - 1e-6 / 3), rel=1e-3)


@pytest.mark.parametrize("function", [*ESTIMATORS, exact_kl])
def test_equal_policies_have_a_divergence_of_exactly_zero(function):
    log_probs, _ = two_distributions()
    assert np.all(function(log_probs, log_probs) == 0)


@pytest.mark.parametrize("function", [*ESTIMATORS, exact_kl])
def test_torch_and_numpy_agree(function):
    policy, reference = two_distributions()
    from_torch = function(torch.from_numpy(policy), torch.from_numpy(reference))
    np.testing.assert_allclose(from_torch.numpy(), function(policy, reference), rtol=1e-14)


def test_the_gradient_of_the_exact_divergence_matches_finite_differences():
    rng = np.random.default_rng(3)
    logits, ref_logits = rng.normal(size=(2, 4))
    reference = log_softmax(ref_logits)
    tensor = torch.tensor(logits, requires_grad=True)
    exact_kl(torch.log_softmax(tensor, 0), torch.from_numpy(reference)).backward()
    step = 1e-6
    finite_differences = [
        float(
            exact_kl(log_softmax(logits + step * unit), reference)
            - exact_kl(log_softmax(logits - step * unit), reference)
        )
        / (2 * step)
        for unit in np.eye(4)
    ]
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad.numpy(), finite_differences, atol=1e-9)


def test_outcomes_impossible_under_the_policy_contribute_nothing():
    with np.errstate(divide="ignore"):
        assert float(exact_kl(np.log([1.0, 0.0]), np.log([0.5, 0.5]))) == pytest.approx(np.log(2))
        assert float(exact_kl(np.log([1.0, 0.0]), np.log([1.0, 0.0]))) == 0.0


def test_outcomes_impossible_under_the_reference_make_it_infinite():
    with np.errstate(divide="ignore"):
        assert float(exact_kl(np.log([0.5, 0.5]), np.log([1.0, 0.0]))) == np.inf


def test_the_gradient_is_finite_beside_impossible_outcomes():
    logits = torch.tensor([0.3, -0.2, -torch.inf], dtype=torch.float64, requires_grad=True)
    reference = torch.log(torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
    exact_kl(torch.log_softmax(logits, 0), reference).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_batch_of_distributions_is_summed_over_the_last_axis_only():
    policy, reference = two_distributions(6)
    stacked = exact_kl(np.stack([policy, reference]), np.stack([reference, reference]))
    np.testing.assert_allclose(stacked, [float(exact_kl(policy, reference)), 0.0], atol=1e-15)


@pytest.mark.parametrize("function", [*ESTIMATORS, exact_kl])
def test_bad_input_names_the_argument(function):
    with pytest.raises(ValueError, match=r"ref_log_probs: expected shape \(2,\), got \(3,\)"):
        function([-1.0, -1.0], [-1.0] * 3)
    with pytest.raises(ValueError, match="policy_log_probs: expected finite"):
        function([float("nan"), -1.0], [-1.0, -1.0])
    with pytest.raises(ValueError, match="ref_log_probs: expected finite"):
        function([-1.0, -1.0], [-1.0, float("inf")])


def test_an_infinite_log_probability_of_a_sample_is_refused():
    with pytest.raises(ValueError, match=r"ref_log_probs: expected finite numbers, got -inf at \[1\]"):
        k1([-1.0, -1.0], [-1.0, -float("inf")])


def test_a_distribution_over_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one outcome"):
        exact_kl(np.zeros((2, 0)), np.zeros((2, 0)))
