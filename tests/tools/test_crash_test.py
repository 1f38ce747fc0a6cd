"""The crash test, in short: a real run is killed and resumed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent.parent / "tools" / "crash_test.py"


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(tmp_path):
    command = [sys.executable, str(TOOL), "--kills", "6", "--out", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert re.search(r"^6 kills over \d+ runs", finished.stdout, re.MULTILINE)
    assert finished.stdout.endswith("every run ended in the same bits\n")
