"""The compiled log-probs and their gradient equal PyTorch's in float64."""

import pytest
import torch

from klimb.kernels import vocabulary

pytestmark = pytest.mark.usefixtures("compiled_path")
DTYPES = [torch.float32, torch.bfloat16]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("size", [1, 5, 16, 40, 1024, 1025, 49_152])
def test_log_probs_and_their_gradient(dtype, temperature, size):
    logits = (5 * normal(7, size)).to(dtype)
    ids = torch.tensor([0, size - 1, size // 2, 0, size // 3, size - 1, 0])
    grad = normal(7, seed=1)
    exact = logits.double().requires_grad_()
    expected = torch.log_softmax(exact / temperature, dim=-1)[torch.arange(7), ids]
    (expected * grad).sum().backward()

    found = vocabulary.token_log_probs(logits, ids, temperature, 2)
    torch.testing.assert_close(found.double(), expected.detach(), rtol=5e-7, atol=5e-7)
    gradient = vocabulary.token_log_prob_gradients_(logits, ids, grad, temperature, 2)
    assert gradient is logits
    close = {"rtol": 2e-6, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 5e-3, "atol": 2e-6}
    torch.testing.assert_close(gradient.double(), exact.grad, **close)


def test_strided_tokens_and_gradients_are_read_as_they_are():
    logits, ids, grad = normal(4, 50), torch.arange(8)[::2], normal(8)[::2]
    expected = torch.log_softmax(logits, dim=-1)[torch.arange(4), ids]
    torch.testing.assert_close(vocabulary.token_log_probs(logits, ids, 1.0, 1), expected)
    expected = -torch.softmax(logits, dim=-1) * grad[:, None]
    expected[torch.arange(4), ids] += grad
    torch.testing.assert_close(
        vocabulary.token_log_prob_gradients_(logits.clone(), ids, grad, 1.0, 1), expected
    )


def test_logits_far_apart_and_logits_that_are_none():
    logits = torch.full((4, 40), -1e30)
    logits[:, 3] = 1e30
    logits[1, 20], logits[2, 39], logits[3, 5] = torch.nan, torch.nan, torch.inf
    found = vocabulary.token_log_probs(logits, torch.tensor([3, 3, 3, 3]), 1.0, 1)
    assert found[0] == 0
    assert found[1:].isnan().all()
    assert vocabulary.token_log_probs(logits[:1], torch.tensor([0]), 1.0, 1)[0] < -1e30


def test_what_it_does_not_take():
    assert not vocabulary.can_take(torch.zeros(2, 3, dtype=torch.float64))
    assert not vocabulary.can_take(torch.zeros(2, 3, device="meta"))
    assert not vocabulary.can_take(torch.zeros(3, 2).t())
