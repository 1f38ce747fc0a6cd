"""klimb's own matrix products equal PyTorch's in float64, of any strides, to the same bits however they are cut."""

import pytest
import torch

from klimb.kernels.products import can_multiply, multiply_

SHAPES = [
    (1, 1, 1),
    (7, 13, 9),
    (16, 100, 64),
    (33, 50, 1281),
    (100, 33, 640),
    (19, 6, 633),
    (5, 0, 4),
    (4, 5, 0),
]


@pytest.fixture(autouse=True)
def _needs_kernel(compiled_path):
    if not can_multiply():
        pytest.skip(f"the path {compiled_path} has no products")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def laid_on_side(matrix):
    return matrix.t().contiguous().t()


@pytest.mark.parametrize(("num_rows", "num_outputs", "depth"), SHAPES)
@pytest.mark.parametrize("lay_x", [laid_on_side, torch.Tensor.contiguous])
@pytest.mark.parametrize("lay_weight", [laid_on_side, torch.Tensor.contiguous])
@pytest.mark.parametrize("lay_out", [laid_on_side, torch.Tensor.contiguous])
def test_a_product_of_any_strides(num_rows, num_outputs, depth, lay_x, lay_weight, lay_out):
    x, weight = normal(num_rows, depth), normal(num_outputs, depth, seed=1)
    plus = normal(num_rows, num_outputs, seed=2)
    expected = x.double() @ weight.double().t()
    out = lay_out(torch.full((num_rows, num_outputs), torch.nan))
    found = multiply_(out, lay_x(x), lay_weight(weight), 2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    multiply_(out, lay_x(x), lay_weight(weight), 2, lay_weight(plus))
    torch.testing.assert_close(out.double(), expected + plus, rtol=1e-5, atol=1e-4)
    multiply_(out, lay_x(x), lay_weight(weight), 1, out)
    torch.testing.assert_close(out.double(), 2 * expected + plus, rtol=1e-5, atol=2e-4)


def test_some_columns_of_a_wider_result_alone_are_written():
    x, weight, wide = normal(20, 40), normal(30, 40, seed=1), torch.zeros(20, 50)
    multiply_(wide[:, 5:35], x, weight, 2)
    torch.testing.assert_close(wide[:, 5:35], x @ weight.t(), rtol=1e-5, atol=1e-4)
    assert not wide[:, :5].any()
    assert not wide[:, 35:].any()


def test_neither_threads_nor_other_rows_change_a_bit():
    x, weight = normal(300, 700), normal(200, 700, seed=1)
    whole = multiply_(torch.empty(300, 200), x, weight, 1)
    assert torch.equal(multiply_(torch.empty(300, 200), x, weight, 3), whole)
    for num_rows in (1, 16, 150):
        assert torch.equal(multiply_(torch.empty(num_rows, 200), x[:num_rows], weight, 2), whole[:num_rows])


def test_what_is_no_number_stays_in_its_row():
    x, weight = normal(40, 30), normal(20, 30, seed=1)
    x[3, 4] = torch.nan
    found = multiply_(torch.empty(40, 20), x, weight, 2).isnan()
    assert found[3].all()
    assert found.sum() == 20
