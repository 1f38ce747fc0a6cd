"""Check every array shape that klimb's signatures promise while the tests run; let idle threads sleep."""

import functools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import jaxtyping

# Threads that spin while they wait slow down what runs beside them tenfold, such as the other half of the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# The halves share the cores, and most models here are too small for a second thread to pay.
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Models go to the first GPU by themselves; the default tests are those of the CPU on every machine.
if not os.environ.get("KLIMB_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported

_NUM_CHECKED = (
    8  # calls of a function within one test; binding the arguments of all took two fifths of the tests' time
)
with_shapes = jaxtyping.jaxtyped
num_calls: Counter[int] = Counter()


def checked(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Check classes and functions whose signature has a shape, these in a test's first calls of each.

    basedpyright checks the types of all others.
    """

    def check(item: Any) -> Any:
        if isinstance(item, type):
            return with_shapes(item, typechecker=typechecker)
        if "jaxtyping." not in repr(item.__annotations__):
            return item
        with_check, number = with_shapes(item, typechecker=typechecker), id(item)

        @functools.wraps(item)
        def call(*arguments: Any, **more: Any) -> Any:
            num_calls[number] += 1
            return (with_check if num_calls[number] <= _NUM_CHECKED else item)(*arguments, **more)

        return call

    return check


jaxtyping.jaxtyped = checked
jaxtyping.install_import_hook("klimb", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later collection of garbage."""
    import gc

    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """Begin to count anew."""
    num_calls.clear()
