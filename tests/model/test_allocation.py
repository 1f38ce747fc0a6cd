"""What a process keeps of the memory that it no longer needs."""

import ctypes
import os
import subprocess
import sys

import pytest

SHAPES = """
import ctypes, torch
from klimb.model.allocation import keep_memory_flat

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

measure = ctypes.CDLL(None).mallinfo2
measure.restype = Heap
keep_memory_flat()
x, weight = torch.randn(1000, 64), torch.randn(96, 64)
found = []
for first in (1, 301, 601):
    for count in range(first, first + 300):
        torch.ops.mkldnn._linear_pointwise(x[:count], weight, None, "none", [], "")
    found.append(measure().uordblks)
print(*found)
"""


def measure(**environment):
    own = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    finished = subprocess.run(
        [sys.executable, "-c", SHAPES], env=own | environment, capture_output=True, text=True, check=True
    )
    return [int(word) for word in finished.stdout.split()]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc alone tells what is in use")
def test_products_of_ever_new_shapes_do_not_pile_up():
    _, second, third = measure()
    assert third - second < 20e6


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc alone tells what is in use")
def test_what_the_users_environment_says_of_onednn_stands():
    _, second, third = measure(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")
    assert third - second > 40e6
