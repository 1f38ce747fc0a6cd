"""What the crash laboratory needs of the system."""

import shutil
import subprocess

import pytest


@pytest.fixture(scope="session")
def strace():
    """Skipped with the reason where it is missing, or may not trace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    command = ["strace", "-f", "--seccomp-bpf", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"strace may not trace here: {tried.stderr[-200:]}")
