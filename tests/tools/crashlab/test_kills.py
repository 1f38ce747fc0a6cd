"""The crash test, in short: a real run is killed and resumed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.crashlab.__main__ import main

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(tmp_path):
    command = [sys.executable, "-m", "tools.crashlab", "kills", "--kills", "6", "--out", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert re.search(r"^6 kills over \d+ runs", finished.stdout, re.MULTILINE)
    assert finished.stdout.endswith("every run ended in the same bits\n")


def test_a_test_of_no_such_name_is_refused_with_the_names(capsys):
    assert main(["sleep"]) == 2
    assert "kills|power" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["kills", "power"])
def test_each_test_of_the_laboratory_says_how_it_is_run(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"usage: python -m tools.crashlab {name}" in capsys.readouterr().out
