"""Compile the kernels while the package is built; without a C compiler the wheel does without them."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMMON = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-fPIC", "-shared"]
ATTEMPTS = {
    "every path": ["-std=gnu11", "-O3", *COMMON],
    # For a compiler that is too old, or whose assembler is, for AVX-512 and for conversions of whole vectors.
    "the generic path alone": ["-std=gnu11", "-O2", "-DKLIMB_PLAIN", *COMMON],
}


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
        problems: list[str] = []
        for what, flags in ATTEMPTS.items():
            problem = self._compile([*compiler.split(), *flags, "-o", str(unfinished)], kernels)
            if problem is None:
                break
            problems.append(f"with {what}: {problem[-500:]}")
        else:
            library.unlink(missing_ok=True)
            unfinished.unlink(missing_ok=True)
            self.app.display_warning(
                "klimb: the kernels were not compiled, NumPy will do: " + "\n".join(problems)
            )
            return
        if problems:
            self.app.display_warning(f"klimb: the kernels were compiled with {what} ({problems[0]})")
        # At once: a run that starts meanwhile must not find it missing or half written.
        unfinished.replace(library)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append("src/klimb/kernels/_compiled.so")

    @staticmethod
    def _compile(command: list[str], kernels: Path) -> str | None:
        """Compile all files into one library; returns what went wrong, if anything did."""
        files = map(str, sorted(kernels.glob("*.c")))
        try:
            subprocess.run([*command, *files, "-lm"], capture_output=True, text=True, check=True)  # noqa: S603  the user's own
        except (OSError, subprocess.CalledProcessError) as error:
            return getattr(error, "stderr", None) or str(error)
        return None
