"""The distribution and the draw from it."""

import numpy as np
import pytest
import torch

from klimb.policy.distribution import SamplingDistribution, inverse_cdf


def test_temperature_by_hand():
    # Logits (2 ln 3, 0) at temperature 2 are (ln 3, 0): probabilities ¾ and ¼.
    logits = torch.tensor([[2 * np.log(3), 0.0]], dtype=torch.float64)
    probs = SamplingDistribution(temperature=2.0).log_probs(logits).exp()
    torch.testing.assert_close(probs, torch.tensor([[0.75, 0.25]], dtype=torch.float64))


def test_the_log_prob_of_a_token_is_that_of_the_whole_distribution():
    logits = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([[0, 1, 2, 3]] * 3)
    distribution = SamplingDistribution(temperature=0.7)
    expected = distribution.log_probs(logits).gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(distribution.token_log_probs(logits, ids), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_no_distribution_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0"):
        SamplingDistribution(temperature)


def log(probs):
    return torch.log(torch.tensor([probs], dtype=torch.float64))


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.2499, 0), (0.25, 1), (0.7499, 1), (0.75, 2), (1 - 2**-53, 2)]
)
def test_the_inverse_cdf_by_hand(uniform, token):
    drawn = inverse_cdf(torch.tensor([[0.25, 0.5, 0.25]]), torch.tensor([uniform], dtype=torch.float64))
    assert drawn.tolist() == [token]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_of_probability_zero_is_never_drawn(uniform):
    drawn = inverse_cdf(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([uniform], dtype=torch.float64))
    assert drawn.tolist() == [1]


def test_a_sum_that_rounds_below_one_still_draws_within_the_vocabulary():
    log_probs = torch.log_softmax(torch.zeros(1, 49_152), dim=-1) - 1e-3  # sums to 0.999
    drawn = inverse_cdf(log_probs.exp(), torch.tensor([1 - 2**-53], dtype=torch.float64))
    assert drawn.tolist() == [49_151]
