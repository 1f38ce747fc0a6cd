"""The compiled norm and gate and their gradients equal PyTorch's in float64."""

import pytest
import torch

from klimb.kernels import layers

pytestmark = pytest.mark.usefixtures("compiled_path")
SHAPES = [(1, 1), (5, 15), (2, 35, 40), (64, 16), (33, 576)]
CLOSE = {"rtol": 1e-5, "atol": 3e-5}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wide(*tensors):
    return [tensor.double().requires_grad_() for tensor in tensors]


def assert_all_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.detach(), **CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_and_its_gradients(shape):
    x, weight, grad = normal(*shape), normal(shape[-1], seed=1), normal(*shape, seed=2)
    wide_x, wide_weight = wide(x, weight)
    expected = wide_weight * wide_x * (wide_x.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt()
    gradients = torch.autograd.grad(expected, [wide_x, wide_weight], grad.double())
    assert_all_close([layers.norm(x, weight, 1e-5, 2)], [expected])
    assert_all_close(layers.norm_gradient(x, weight, grad, 1e-5, 2), gradients)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gate_and_its_gradients(shape):
    gate, up, grad = 4 * normal(*shape), normal(*shape, seed=1), normal(*shape, seed=2)
    wide_gate, wide_up = wide(gate, up)
    expected = torch.nn.functional.silu(wide_gate) * wide_up
    gradients = torch.autograd.grad(expected, [wide_gate, wide_up], grad.double())
    assert_all_close([layers.gate(gate, up, 2)], [expected])
    assert_all_close(layers.gate_gradient(gate, up, grad, 2), [expected, *gradients])


def test_threads_change_no_bit():
    x, weight, grad = normal(200, 600), normal(600, seed=1), normal(200, 600, seed=2)
    once = layers.norm_gradient(x, weight, grad, 1e-5, 1)
    for one, other in zip(layers.norm_gradient(x, weight, grad, 1e-5, 3), once, strict=True):
        assert torch.equal(one, other)


def test_what_is_laid_out_otherwise_is_read_as_it_is():
    gate, up = normal(40, 30).t(), normal(30, 80, seed=1)[:, ::2]
    torch.testing.assert_close(layers.gate(gate, up, 2), torch.nn.functional.silu(gate) * up, **CLOSE)
