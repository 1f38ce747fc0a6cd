"""Whether Triton's kernels may be used on a GPU."""

import os
from functools import cache
from importlib.util import find_spec

VARIABLE = "KLIMB_TRITON"
"""The environment variable that forbids Triton's kernels (`off`)."""


def is_forbidden() -> bool:
    """Whether the environment forbids them."""
    return os.environ.get(VARIABLE) == "off"


@cache
def is_installed() -> bool:
    """Whether Triton is there."""
    return find_spec("triton") is not None
