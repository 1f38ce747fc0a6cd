"""The reduction: right in every dtype and layout, exact in its additions, the same in any number of threads."""

import itertools
import math
import tracemalloc

import array_api_compat.numpy as xp
import array_api_compat.torch as torch_xp
import numpy as np
import pytest
import torch

from klimb import rlhf_weight_update
from klimb.core.checks import ArgumentError
from klimb.kernels import library, weighted_sum

SHAPES = [
    (1, 1),
    (3, 5),
    (7, 130),
    (300, 513),
    (1025, 700),
    (65, 40_000),
    (20_000, 3),
    (17_003, 33),
    (2_000, 600),
    (5, 70_001),
]
DTYPES = ["float16", "float32", "float64"]


@pytest.fixture
def every_path(path, monkeypatch):
    """On each path, small matrices as well."""
    monkeypatch.setattr("klimb.kernels.reduce._SMALL_BYTES", 0)
    return path


def layouts(matrix):
    yield "C", matrix
    yield "Fortran", np.asfortranarray(matrix)
    wide = np.repeat(np.repeat(matrix, 2, axis=0), 3, axis=1)
    yield "strided", wide[::2, ::3]
    yield "strided Fortran", np.asfortranarray(wide)[::2, ::3]
    yield "reversed", np.ascontiguousarray(matrix[::-1, ::-1])[::-1, ::-1]


def random_case(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape[0]), rng.standard_normal(shape).astype(dtype)


@pytest.mark.usefixtures("every_path")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_layout_and_dtype_agrees_with_float64(shape, dtype):
    weights, matrix = random_case(shape, dtype)
    expected = weights @ matrix.astype(np.float64)
    scale = np.abs(weights) @ np.abs(matrix.astype(np.float64))
    for name, laid_out in layouts(matrix):
        for compute in (np.float32, np.float64):
            in_double = np.float64 in (compute, matrix.dtype.type)
            result = weighted_sum(xp, weights.astype(compute), laid_out)
            assert result.dtype == (np.float64 if in_double else np.float32)
            # The weights are rounded to float32, and so is each product: a few ε of the sum of magnitudes.
            tolerance = (1e-14 if compute == np.float64 else 4e-7) * scale
            assert np.all(np.abs(result - expected) <= tolerance), (name, compute)


@pytest.mark.usefixtures("compiled_path")
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_tensors_agree_with_float64(shape):
    weights, matrix = random_case(shape, "float32")
    tensor = torch.from_numpy(matrix).to(torch.bfloat16)
    expected = weights.astype(np.float32).astype(np.float64) @ tensor.double().numpy()
    for laid_out in (tensor, tensor.T.contiguous().T):
        result = weighted_sum(torch_xp, torch.from_numpy(weights).float(), laid_out)
        scale = np.abs(weights) @ np.abs(tensor.double().numpy())
        assert result.dtype == torch.float32
        assert np.all(np.abs(result.numpy() - expected) <= 4e-7 * scale)


@pytest.mark.usefixtures("every_path")
def test_every_half_is_converted_exactly():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)[None, :]
    with np.errstate(invalid="ignore"):
        for weights in (np.ones(1, np.float32), np.ones(1, np.float64)):
            result = weighted_sum(xp, weights, halves)
            np.testing.assert_array_equal(result, halves[0].astype(result.dtype))


@pytest.mark.usefixtures("compiled_path")
def test_every_bfloat16_is_converted_exactly():
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    tensor = bits.view(torch.bfloat16)[None, :]
    result = weighted_sum(torch_xp, torch.ones(1), tensor)
    torch.testing.assert_close(result, tensor[0].float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("compiled_path")
@pytest.mark.parametrize("shape", [(3000, 5000), (400_000, 20)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_number_of_threads_changes_no_bit(shape, order, monkeypatch):
    monkeypatch.setattr("klimb.kernels.reduce._CHUNK_BYTES", 1 << 20)
    weights, matrix = random_case(shape, "float32")
    matrix = np.asarray(matrix, order=order)
    results = []
    for threads in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(weighted_sum(xp, weights.astype(np.float32), matrix))
    np.testing.assert_array_equal(*results)


@pytest.mark.usefixtures("compiled_path")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pieces_of_few_columns_change_no_bit(dtype, order, monkeypatch):
    weights, matrix = random_case((1030, 4103), dtype)
    matrix = np.asarray(matrix, order=order)
    results = []
    for threads in (1, 64):  # 64 leave the last one seven columns
        monkeypatch.setattr("klimb.kernels.reduce.num_threads", lambda threads=threads: threads)
        results.append(weighted_sum(xp, weights.astype(np.float32), matrix))
    np.testing.assert_array_equal(*results)


@pytest.mark.usefixtures("compiled_path")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(5, 7), (300, 131), (70, 5000)])
def test_where_the_matrix_lies_in_memory_changes_no_bit(shape, dtype, order, monkeypatch):
    monkeypatch.setattr("klimb.kernels.reduce._SMALL_BYTES", 0)
    weights, matrix = random_case(shape, dtype)
    results = []
    for offset in range(4):
        moved = np.empty(matrix.size + offset, dtype)[offset:].reshape(shape, order=order)
        moved[...] = matrix
        results.append(weighted_sum(xp, weights.astype(np.float32), moved))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.usefixtures("compiled_path")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("in_columns", [False, True])
def test_what_lies_beside_the_matrix_never_shows(dtype, in_columns):
    """Behind each row or column stands NaN, which would be seen in any sum."""
    for rows, columns in itertools.product((1, 3, 6, 17), (1, 2, 3, 5, 7, 9, 15, 31, 33, 131)):
        length = rows if in_columns else columns
        whole = torch.full(
            (columns if in_columns else rows, length + 9), torch.nan, dtype=getattr(torch, dtype)
        )
        whole[:, :length] = 1
        matrix = whole[:, :length].T if in_columns else whole[:, :length]
        result = weighted_sum(torch_xp, torch.ones(rows, dtype=torch.float32), matrix)
        assert result.tolist() == [rows] * columns


@pytest.mark.usefixtures("compiled_path")
def test_a_million_float32_samples_lose_a_tenth_of_what_the_textbook_loses():
    rng = np.random.default_rng(0)
    weights = rng.uniform(0, 1, 1_000_000).astype(np.float32)
    matrix = rng.uniform(0, 1, (1_000_000, 4)).astype(np.float32)
    products = weights[:, None].astype(np.float64) * matrix  # exact: two 24-bit factors fit 53 bits
    exact = np.array([math.fsum(column) for column in products.T])
    textbook = np.abs((weights[:, None] * matrix).sum(axis=0, dtype=np.float32) - exact).max()
    ours = np.abs(weighted_sum(xp, weights, matrix).astype(np.float64) - exact).max()
    assert ours <= textbook / 10


def test_threads_are_those_the_user_allows(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(library, "processor_quota", lambda: None)
    for asked, expected in (("", 4), ("2", 2), ("1,4", 1), ("99", 4), ("nonsense", 4), ("0", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert library.num_threads() == expected


@pytest.mark.parametrize("shape", [(4, 3), (32, 64), (300, 500), (8, 70_000), (70_000, 8)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_even_under_a_zero_weight(shape, bad):
    """The check looks at the result alone: 0 · ∞ must come out as NaN in every product that is used."""
    num_samples, num_parameters = shape
    grads = np.ones(shape)
    grads[num_samples // 2, num_parameters // 3] = bad
    zeros = np.zeros(num_samples)
    for convert in (lambda a: a, lambda a: a.astype(np.float32), np.asfortranarray, torch.from_numpy):
        arrays = [convert(array) for array in (np.zeros(num_parameters), zeros, zeros, zeros, grads)]
        with pytest.raises(
            ArgumentError, match=rf"log_prob_grads: .* at \[{num_samples // 2}, {num_parameters // 3}\]"
        ):
            rlhf_weight_update(*arrays, beta=0.0, lr=0.1)


def test_finite_arguments_whose_result_overflows_are_told_so():
    with pytest.raises(ArgumentError, match=r"the result is too large for float32, although .* are finite"):
        rlhf_weight_update(
            *(np.array(a, dtype=np.float32) for a in ([1], [3e38], [0], [0], [[3e38]])), beta=0.0, lr=1.0
        )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_gradients_keep_their_dtype_and_the_result_has_the_promoted_one(dtype):
    arrays = [np.ones(3), np.ones(2), np.zeros(2), np.zeros(2)]
    grads = np.ones((2, 3), dtype=dtype)
    assert rlhf_weight_update(*arrays, grads, 0.1, 0.1).dtype == np.float64
    same = [array.astype(dtype) for array in arrays]
    assert rlhf_weight_update(*same, grads, 0.1, 0.1).dtype == dtype


def test_columns_in_blocks_give_the_same_bits(monkeypatch):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=size) for size in (10_007, 50, 50, 50, (50, 10_007))]
    whole = rlhf_weight_update(*arrays, 0.1, 0.1)
    monkeypatch.setattr("klimb.core.update._COLUMN_BLOCK", 1 << 10)
    np.testing.assert_allclose(rlhf_weight_update(*arrays, 0.1, 0.1), whole, rtol=1e-13, atol=1e-15)


@pytest.mark.usefixtures("compiled_path")
@pytest.mark.parametrize("shape", [(4, 6_000_000), (200_000, 100)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_step_takes_less_than_64_mb_beyond_its_result(shape, dtype):
    arguments = [np.zeros(size, dtype) for size in (shape[1], *[shape[0]] * 3, shape)]
    tracemalloc.start()
    updated = rlhf_weight_update(*arguments, 0.1, 0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - updated.nbytes < 64 << 20


def test_tensors_that_carry_gradients_take_pytorchs_own_product():
    weights, matrix = (torch.tensor(a) for a in random_case((300, 600), "float64"))
    weights.requires_grad_()
    weighted_sum(torch_xp, weights, matrix).sum().backward()
    torch.testing.assert_close(weights.grad, matrix.sum(dim=1))
