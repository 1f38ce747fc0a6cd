"""Checks at the boundary that the equations' own tests do not reach."""

import numpy as np
import pytest
import torch

from klimb.core import checks


@pytest.mark.parametrize("value", ["0.1x", None, [1.0, 2.0]])
def test_what_is_not_a_number_is_refused_by_name(value):
    with pytest.raises(ValueError, match="beta: expected a number, got"):
        checks.nonnegative_number("beta", value)


def test_arrays_that_agree_are_passed_on_uncopied():
    matrix = np.ones((3, 2), dtype=np.float32)
    _, (passed, _) = checks.floating_arrays(matrix=matrix, other=np.ones(2, dtype=np.float32))
    assert np.shares_memory(passed, matrix)


def test_lists_follow_the_library_of_the_arrays_beside_them():
    _, (tensor, from_list) = checks.floating_arrays(tensor=torch.ones(2), values=[1, 2])
    assert isinstance(from_list, torch.Tensor)
    assert from_list.dtype == tensor.dtype


def test_a_scalar_beta_may_come_as_an_array_scalar():
    assert checks.nonnegative_number("beta", np.float32(0.5)) == 0.5
    assert checks.nonnegative_number("beta", torch.tensor(0.5)) == 0.5
