"""Check every array shape that klimb's signatures promise while the tests run; let idle threads sleep."""

import os
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

with_shapes = jaxtyping.jaxtyped


def checked(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Check functions whose signature has a shape, and classes; basedpyright checks the types of all others.

    jaxtyping binds the arguments of every call, which took two fifths of the tests' time.
    """

    def check(item: Any) -> Any:
        has_shape = isinstance(item, type) or "jaxtyping." in repr(item.__annotations__)
        return with_shapes(item, typechecker=typechecker) if has_shape else item

    return check


jaxtyping.jaxtyped = checked
jaxtyping.install_import_hook("klimb", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later collection of garbage."""
    import gc

    gc.collect()
    gc.freeze()
