"""Which matrix-product paths this CPU can run, tested once per process.

Whether a library can do it depends on the processor, on how PyTorch was built, and on variables such as
ONEDNN_MAX_CPU_ISA, and none of them is asked: two small products are formed and compared with the exact result.

- `onednn`: oneDNN, in float32 and in bfloat16.
- `klimb`: klimb's own kernel, in float32; bfloat16 is widened, multiplied in float32, and rounded once. It is the
  fastest where the kernels run on AVX2 (`klimb.kernels.library.path`).
- `widened`: oneDNN in float32; bfloat16 as above.
- `torch`: PyTorch's own product in float32, and bfloat16 as above: PyTorch was built without oneDNN, as some are for
  ARM, or oneDNN fails here.
"""

import os
from functools import cache

import torch
from torch import Tensor

from klimb.errors import ConfigError
from klimb.kernels import library
from klimb.kernels.products import can_multiply

VARIABLE = "KLIMB_PRODUCTS"
"""The environment variable that names the path to use."""

_PATHS = ("onednn", "klimb", "widened", "torch")


@cache
def product_paths_here() -> tuple[str, ...]:
    """Return the paths that work on this machine, the best first."""
    works = {
        "onednn": _onednn_multiplies(torch.float32) and _onednn_multiplies(torch.bfloat16),
        "klimb": can_multiply(),
        "widened": _onednn_multiplies(torch.float32),
        "torch": True,
    }
    order = sorted(_PATHS, key=lambda name: name != "klimb") if library.path() == "avx2" else _PATHS
    return tuple(name for name in order if works[name])


@cache
def product_path() -> str:
    """Return the path that is used: the best, or the one that KLIMB_PRODUCTS names.

    Raises:
        ConfigError: The one that it names is unknown, or does not work here.
    """
    here, asked = product_paths_here(), os.environ.get(VARIABLE, "").strip()
    if asked and asked not in here:
        why = "it does not work on this machine" if asked in _PATHS else "no such path of the matrix products"
        raise ConfigError(f"{VARIABLE}={asked}: {why}; use one of {', '.join(here)}, or unset it")
    return asked or here[0]


def is_widened(tensor: Tensor) -> bool:
    """Whether products of such numbers are formed in float32 and rounded once: bfloat16, where nothing does it here."""
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and product_path() != "onednn"


def why_products_are_slower(device: torch.device, precision: str) -> str:
    """Say why a run's products take longer than they do elsewhere; "" if they do not."""
    used, here = product_path(), product_paths_here()
    if device.type != "cpu" or used == "onednn":
        return ""
    forced = f" ({VARIABLE}={used} is set)" if used != here[0] else ""
    if precision == "bfloat16":
        why = (
            "klimb multiplies in float32 and rounds" if forced else "this processor has no bfloat16 products"
        )
        return f"{why}{forced}: slower than float32; --precision float32 is the better choice"
    if used == "torch":
        return f"products by PyTorch itself{forced or ', which finds no working oneDNN'}"
    return ""


@cache
def bfloat16_problem() -> str:
    """Say why PyTorch itself cannot multiply in bfloat16, as what is not klimb's own in a model does; "" if it can."""
    x, weight, _, expected = _example(torch.bfloat16)
    try:
        found = [torch.nn.functional.linear(x, weight), x @ weight.t()]
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "" if all(torch.equal(product, expected) for product in found) else "its products are wrong"


def _onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether all that klimb asks of oneDNN works for numbers of this type, and is right."""
    x, weight, plus, expected = _example(dtype)
    try:
        multiply = torch.ops.mkldnn._linear_pointwise
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
        plain = [multiply(x, each, None, "none", [], "") for each in (weight, laid_out)]
        more = [multiply.binary(x, plus, each, None, "add") for each in (weight, laid_out)]
    except (AttributeError, RuntimeError):  # no such operation, or none for this type on this processor
        return False
    return all(torch.equal(found, expected) for found in plain) and all(
        torch.equal(found, expected + plus) for found in more
    )


def _example(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, W, c and x Wᵀ, of whole numbers so small that every sum is exact in any type."""
    count = torch.arange(24 * 32)
    x, weight = (count[: 7 * 32] % 3 - 1).view(7, 32), (count % 5 - 2).view(24, 32)
    plus = (count[: 7 * 24] % 4).view(7, 24)
    return x.to(dtype), weight.to(dtype), plus.to(dtype), (x @ weight.t()).to(dtype)
