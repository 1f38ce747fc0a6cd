"""Triton's kernels of the vocabulary, by Triton's interpreter on the CPU, beside the plain equations in float64."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "Triton's interpreter is off: its kernels run on the GPU, see tests/gpu", allow_module_level=True
    )
pytest.importorskip("triton", minversion="3.7", reason="its interpreter needs Triton 3.7 with NumPy 2.4")

from klimb.kernels import vocabulary_gpu

SIZES = [1, 7, 1000, 4096, 9001]


def made(size, dtype, num_rows=5):
    generator = torch.Generator().manual_seed(size)
    logits = (3 * torch.randn(num_rows, size, generator=generator, dtype=torch.float64)).to(dtype)
    if size > 5000:
        logits[0, :4096] = -torch.inf  # a whole block that has nothing
        logits[1] += 300
    return logits, torch.randint(size, (num_rows,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 2e-6)]
)
@pytest.mark.parametrize("size", SIZES)
def test_log_probs_and_gradients_are_those_of_the_equations(size, dtype, tolerance, temperature):
    logits, ids = made(size, dtype)
    ids[0] = size - 1
    expected = torch.log_softmax(logits.double() / temperature, dim=-1)
    found = vocabulary_gpu.token_log_probs(logits, ids, temperature)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    chosen = expected.gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(found.double(), chosen, rtol=tolerance, atol=tolerance * 300)
    grad = torch.linspace(-2, 3, len(ids), dtype=found.dtype)
    slopes = torch.nn.functional.one_hot(ids, size) - expected.exp()
    wanted = grad.double()[:, None] * slopes / temperature
    given = logits.clone()
    assert vocabulary_gpu.token_log_prob_gradients_(given, ids, grad, temperature) is given
    relative = 2**-7 if dtype == torch.bfloat16 else 300 * tolerance
    torch.testing.assert_close(given.double(), wanted, rtol=relative, atol=300 * tolerance)


def test_no_rows_are_nothing():
    logits, ids = torch.zeros(0, 9), torch.zeros(0, dtype=torch.long)
    assert vocabulary_gpu.token_log_probs(logits, ids, 1.0).shape == (0,)
    assert vocabulary_gpu.token_log_prob_gradients_(logits, ids, torch.zeros(0), 1.0).shape == (0, 9)
