"""What ranks send each other arrives as it was."""

import math

import pytest
import torch

from klimb.scale.messages import pack, unpack


@pytest.mark.parametrize(
    "value",
    [None, [], {"a": [1, 0.1, -0.0, 1e-320, "é\ud800\n", True, None]}, {"": {"<tensor>": 0}}, [[{"b": {}}]]],
)
def test_json_types_arrive_as_they_were(value):
    assert repr(unpack(pack(value))) == repr(value)


def test_what_is_not_finite_arrives():
    first, second = unpack(pack([math.inf, math.nan]))
    assert first == math.inf
    assert math.isnan(second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_arrive_where_they_stood(dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    arrived = unpack(pack({"a": [tensor, tensor.T, None], "b": tensor[:0]}))
    assert torch.equal(arrived["a"][0], tensor)
    assert torch.equal(arrived["a"][1], tensor.T)
    assert arrived["a"][2] is None
    assert arrived["b"].shape == (0, 3)
    assert arrived["b"].dtype == dtype
    assert torch.equal(unpack(pack(tensor)), tensor)


def test_other_things_are_refused():
    with pytest.raises(TypeError):
        pack({"a": object()})
