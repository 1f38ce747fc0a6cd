"""A long run takes no more memory, files or threads at its end than once it was warm."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "long_run.py"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells what a process has")
def test_three_hundred_steps_leave_nothing_behind(tmp_path):
    spec = importlib.util.spec_from_file_location("benchmarks_long_run", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = benchmark.run(300, tmp_path)
    assert len(set(found["files"][30:])) == 1
    assert len(set(found["threads"][30:])) == 1
    assert found["memory"][-1] - found["memory"][150] < 10
