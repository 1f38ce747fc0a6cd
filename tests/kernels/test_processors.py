"""The kernels on processors that this machine is not: compiled for them, and run under an emulator.

qemu-user 7.2 knows no AVX-512: that path runs on processors that have it alone.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KERNELS = Path(__file__).parents[2] / "src" / "klimb" / "kernels"
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
COMPILERS = {
    "x86_64": ["cc", "x86_64-linux-gnu-gcc"] if platform.machine() == "x86_64" else ["x86_64-linux-gnu-gcc"],
    "aarch64": ["cc", "aarch64-linux-gnu-gcc"]
    if platform.machine() == "aarch64"
    else ["aarch64-linux-gnu-gcc"],
}


@pytest.fixture(scope="module")
def program_for(tmp_path_factory):
    """Compile the driver for a kind of processor, once."""
    programs = {}

    def compile_(kind):
        compiler = next(filter(None, map(shutil.which, COMPILERS[kind])), None)
        if compiler is None:
            pytest.skip(f"no compiler for {kind}: none of {', '.join(COMPILERS[kind])} is installed")
        if kind not in programs:
            program = tmp_path_factory.mktemp(kind) / "driver"
            files = [Path(__file__).with_name("driver.c"), *sorted(KERNELS.glob("*.c"))]
            subprocess.run([compiler, *FLAGS, "-static", "-o", program, *files, "-lm"], check=True)
            programs[kind] = program
        return programs[kind]

    return compile_


@pytest.mark.parametrize(
    ("kind", "processor", "paths"),
    [
        ("x86_64", "Nehalem", ["generic"]),  # SSE 4.2
        ("x86_64", "SandyBridge", ["generic"]),  # AVX, no AVX2, no FMA
        ("x86_64", "Haswell", ["generic", "avx2"]),
        ("aarch64", "cortex-a53", ["neon"]),  # ARMv8.0
        ("aarch64", "max", ["neon"]),
    ],
)
def test_each_kind_of_processor_takes_the_paths_that_it_can_run_and_each_is_right(
    kind, processor, paths, program_for
):
    emulator = shutil.which(f"qemu-{kind}")
    if emulator is None:
        pytest.skip(f"no emulator: qemu-{kind} (Debian's qemu-user) is not installed")
    done = subprocess.run(
        [emulator, "-cpu", processor, program_for(kind)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == paths
