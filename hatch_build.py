"""Compile the kernels while the package is built; without a C compiler the wheel does without them."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = [
    "-std=gnu11",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-fPIC",
    "-shared",
]


class KernelHook(BuildHookInterface):
    """Turns the C files into a shared library, which ctypes loads."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  hatchling's names
        """Compile, unless asked not to or there is nothing to compile with."""
        kernels = Path(self.root) / "src" / "klimb" / "kernels"
        library, unfinished = kernels / "_compiled.so", kernels / f"_compiled.so.{os.getpid()}"
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None or os.environ.get("KLIMB_KERNELS") == "numpy":
            library.unlink(missing_ok=True)
            return
        command = [
            *compiler.split(),
            *FLAGS,
            "-o",
            str(unfinished),
            *map(str, sorted(kernels.glob("*.c"))),
            "-lm",
        ]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  the user's own compiler
        except (OSError, subprocess.CalledProcessError) as error:
            library.unlink(missing_ok=True)
            why = getattr(error, "stderr", None) or str(error)
            self.app.display_warning(f"klimb: the kernels were not compiled, NumPy will do: {why[-500:]}")
            return
        # At once: a run that starts meanwhile must not find it missing or half written.
        unfinished.replace(library)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append("src/klimb/kernels/_compiled.so")
