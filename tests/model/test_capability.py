"""What multiplies is found by trying; each way can be forced, and each gives the same numbers up to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from klimb.errors import ConfigError
from klimb.kernels.library import paths_here
from klimb.model import capability, matmul
from klimb.model.capability import product_path, product_paths_here

PATHS = ("onednn", "klimb", "widened", "torch")
ENGINE = Path(__file__).parents[1] / "policy" / "engine" / "test_engine.py"
SELECTED = "a_product_and or fast_norm or bfloat16_moves or (lean_decoding and llama and 2.0 and not adapter)"


def normal(*shape, dtype, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_to_multiply_is_right_to_one_rounding(path, dtype, use_products):
    if path not in product_paths_here():
        pytest.skip(f"{path} does not work on this machine: no product was formed by it")
    use_products(path)
    x, weight, bias, plus = (
        normal(*shape, dtype=dtype, seed=seed)
        for seed, shape in enumerate(((2, 9, 48), (33, 48), (33,), (2, 9, 33)))
    )
    exact = x.double() @ weight.double().t() + bias.double()
    # Half a unit in the last place of the largest; where oneDNN rounds before it adds, one of each.
    bound = (3e-6 if dtype == torch.float32 else 2**-8) * float(exact.abs().max())
    rows, added, parts = x.flatten(0, 1), plus.flatten(0, 1), list(weight.split([20, 13]))

    def by_row(out):
        return out.view(2, 9, 33)

    for found in (
        matmul.times(x, weight, bias),
        by_row(matmul.times_side_by_side(rows, matmul.side_by_side(parts, 18), bias)),
        by_row(matmul.times_side_by_side(rows, matmul.side_by_side(parts, 18), bias, added)) - plus,
        matmul.product(x, weight, bias),
        matmul.matmul(x, weight.t()) + bias,
        matmul.addmm_(bias.expand(18, 33).clone(), x.flatten(0, 1), weight.t()).view(2, 9, 33),
    ):
        assert found.dtype == dtype
        assert float((found.double() - exact).abs().max()) <= 3 * bound


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_has_the_gradients_of_a_product(path, dtype, use_products):
    if path not in product_paths_here():
        pytest.skip(f"{path} does not work on this machine: no gradient was found by it")
    use_products(path)
    leaves = [normal(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(((5, 24), (7, 24), (7,)))]
    grad = normal(5, 7, dtype=dtype, seed=9)
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    torch.nn.functional.linear(*exact).backward(grad.double())
    ours = [leaf.requires_grad_() for leaf in leaves]
    matmul.product(*ours).backward(grad)
    for found, expected in zip(ours, exact, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=tolerance, atol=tolerance)


def refuse_to_multiply(*_):
    raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw")


def wrong_product(x, weight, *_):
    return x.new_zeros(len(x), len(weight))


@pytest.mark.parametrize("fake", [refuse_to_multiply, wrong_product])
def test_what_fails_or_is_wrong_is_not_used(fake, monkeypatch):
    assert capability._onednn_multiplies(torch.float32) or "onednn" not in product_paths_here()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", fake, raising=False)
    assert not capability._onednn_multiplies(torch.float32)
    assert not capability._onednn_multiplies(torch.bfloat16)


def test_without_onednn_in_pytorch_there_is_pytorch_itself(monkeypatch):
    class Nothing:
        """What `torch.ops.mkldnn` is where PyTorch was built without it: no attribute is found."""

    monkeypatch.setattr(torch.ops, "mkldnn", Nothing())
    assert set(product_paths_here.__wrapped__()) <= {"klimb", "torch"}


@pytest.mark.parametrize(
    ("named", "words"), [("mkl", "no such path"), ("onednn", "it does not work on this machine")]
)
def test_a_way_that_is_not_there_is_refused(named, words, monkeypatch, use_products):
    use_products("torch")
    monkeypatch.setattr(capability, "product_paths_here", lambda: ("widened", "torch"))
    monkeypatch.setenv("KLIMB_PRODUCTS", named)
    product_path.cache_clear()
    with pytest.raises(
        ConfigError, match=f"KLIMB_PRODUCTS={named}: {words}.*use one of widened, torch, or unset it"
    ):
        product_path()


def test_pytorchs_own_bfloat16_is_tried_too(monkeypatch):
    def fails(*_):
        raise RuntimeError("could not create a primitive\nmore of it")

    monkeypatch.setattr(torch.nn.functional, "linear", fails)
    assert capability.bfloat16_problem.__wrapped__() == "could not create a primitive"


LESSER = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "KLIMB_KERNELS": "avx2"},
    "plain": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "KLIMB_KERNELS": paths_here()[-2],
    },
}


@pytest.mark.parametrize("name", LESSER)
def test_the_engine_is_right_on_a_lesser_processor(name):
    if name == "avx2" and paths_here()[0] != "avx512":
        pytest.skip(
            "this processor has no more than AVX2 itself: all other tests run on that path, or cannot"
        )
    usual = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KLIMB_", "ONEDNN_", "DNNL_", "ATEN_", "PYTEST_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ENGINE, "-k", SELECTED],
        capture_output=True, text=True, check=False, env=usual | {"OMP_NUM_THREADS": "1"} | LESSER[name],
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
