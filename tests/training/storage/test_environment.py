"""What a run says and records of the paths that compute it."""

import pytest
import torch

from klimb.errors import ConfigError
from klimb.kernels import library
from klimb.model import capability
from klimb.training.storage.environment import describe_environment, describe_slowness, require_paths

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def paths(monkeypatch):
    """Kernels and products as on another machine: what it can do, and what its user asked for."""

    def pretend(*, kernels=("avx2", "generic", "numpy"), products=("widened", "torch"), problem="", **asked):
        plainest_first = tuple(reversed(kernels[:-1]))
        built = library._Compiled(library._compiled().functions, plainest_first, len(plainest_first), problem)
        monkeypatch.setattr(library, "_compiled", lambda: built)
        monkeypatch.setattr(capability, "product_paths_here", lambda: products)
        for name in ("KLIMB_KERNELS", "KLIMB_PRODUCTS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in asked.items():
            monkeypatch.setenv(name, value)
        library.path.cache_clear()
        capability.product_path.cache_clear()

    # A path by that name is only asked for, not run.
    monkeypatch.setattr(library._compiled().functions, "klimb_use_path", lambda _: 1)
    yield pretend
    monkeypatch.undo()
    library.path.cache_clear()
    capability.product_path.cache_clear()
    library.path()


@pytest.mark.parametrize(
    "kernels", [("avx512", "avx2", "generic", "numpy"), ("avx2", "generic", "numpy"), ("neon", "numpy")]
)
def test_nothing_is_said_of_what_is_as_fast_as_this_machine_can(kernels, paths):
    paths(kernels=kernels, products=("onednn", "widened", "torch"))
    assert describe_slowness(CPU, "float32") == describe_slowness(CPU, "bfloat16") == ""


def test_bfloat16_without_instructions_for_it_is_said_to_be_slower_and_float32_is_not(paths):
    paths()
    assert describe_slowness(CPU, "float32") == ""
    assert describe_slowness(CPU, "bfloat16") == (
        "this processor has no bfloat16 products: slower than float32; --precision float32 is the better choice"
    )
    assert describe_slowness(GPU, "bfloat16") == ""


def test_a_processor_without_avx2_and_a_compiler_that_built_little_are_named(paths):
    paths(kernels=("generic", "numpy"))
    assert (
        describe_slowness(CPU, "float32")
        == "klimb's kernels: generic (klimb's compiler built no faster path)"
    )
    assert describe_slowness(GPU, "float32") == ""


def test_kernels_that_were_not_built_and_pytorch_without_onednn_are_named(paths):
    paths(kernels=("numpy",), products=("torch",), problem="klimb was installed without a C compiler")
    assert describe_slowness(CPU, "float32") == (
        "klimb's kernels: numpy (klimb was installed without a C compiler); "
        "products by PyTorch itself, which finds no working oneDNN"
    )


def test_what_was_forced_is_said_and_recorded(paths, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    paths(KLIMB_KERNELS="generic", KLIMB_PRODUCTS="torch")
    assert describe_slowness(CPU, "float32") == (
        "klimb's kernels: generic (KLIMB_KERNELS=generic is set); "
        "products by PyTorch itself (KLIMB_PRODUCTS=torch is set)"
    )
    assert describe_environment(CPU)["paths"] == "kernels generic, products torch, oneDNN at most SSE41"


def test_bfloat16_that_pytorch_cannot_multiply_is_refused_before_anything_is_loaded(paths, monkeypatch):
    paths()
    monkeypatch.setattr(
        "klimb.training.storage.environment.bfloat16_problem", lambda: "could not create a primitive"
    )
    with pytest.raises(
        ConfigError, match=r"^precision: PyTorch cannot .*\(could not create a primitive\); use --precision f"
    ):
        require_paths(CPU, "bfloat16")
    require_paths(CPU, "float32")
    require_paths(GPU, "bfloat16")
