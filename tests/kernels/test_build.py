"""The build of the kernels gets by with whatever compiler there is."""

import ctypes
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "src" / "klimb" / "kernels"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Run the hook on a copy of the sources with a compiler; returns the library's path, warnings, and build data."""
    interface = types.ModuleType("interface")
    interface.BuildHookInterface = object  # hatchling is there while a package is built, and need not be now
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin.interface", interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    copied = shutil.copytree(
        KERNELS, tmp_path / "src/klimb/kernels", ignore=shutil.ignore_patterns("*.so*", "*.py*")
    )

    def run(compiler):
        monkeypatch.setenv("CC", str(compiler))
        monkeypatch.delenv("KLIMB_KERNELS", raising=False)
        warnings, data = [], {"artifacts": []}
        hook = module.KernelHook()
        hook.root, hook.app = str(tmp_path), types.SimpleNamespace(display_warning=warnings.append)
        hook.initialize("standard", data)
        return copied / "_compiled.so", warnings, data

    return run


def compiler_that_fails(folder, condition):
    file = folder / "cc"
    file.write_text(f'#!/bin/sh\nif {condition}; then echo "too old" >&2; exit 1; fi\nexec {COMPILER} "$@"\n')
    file.chmod(0o755)
    return file


@pytest.mark.slow
def test_a_compiler_that_fails_at_the_faster_paths_builds_the_generic_one_and_it_is_right(build, tmp_path):
    file, warnings, data = build(compiler_that_fails(tmp_path, '! echo "$@" | grep -q KLIMB_PLAIN'))
    functions = ctypes.CDLL(str(file))
    functions.klimb_path_name.restype = ctypes.c_char_p
    assert functions.klimb_path_name(0) in (b"generic", b"neon")
    assert functions.klimb_path_name(1) is None
    assert functions.klimb_num_paths_here() == 1
    assert warnings[0].startswith(
        "klimb: the kernels were compiled with the generic path alone (with every path: too old"
    )
    assert data["artifacts"] == ["src/klimb/kernels/_compiled.so"]
    program, driver = tmp_path / "driver", Path(__file__).with_name("driver.c")
    subprocess.run(
        [COMPILER, "-O1", "-o", program, driver, file, "-lm", f"-Wl,-rpath,{file.parent}"], check=True
    )
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) in ((0, "generic\n"), (0, "neon\n"))


def test_a_compiler_that_fails_at_all_leaves_no_library_and_says_why(build, tmp_path):
    stale = tmp_path / "src/klimb/kernels/_compiled.so"
    stale.write_bytes(b"of an earlier build")
    file, warnings, data = build(compiler_that_fails(tmp_path, "true"))
    assert not file.exists()
    assert "the kernels were not compiled, NumPy will do" in warnings[0]
    assert warnings[0].count("too old") == 2
    assert data == {"artifacts": []}


READELF = shutil.which("readelf")
ARM_COMPILER = shutil.which("aarch64-linux-gnu-gcc")
ARM_EMULATOR = shutil.which("qemu-aarch64")
OLDEST_GLIBC = (2, 17)  # of a wheel tagged manylinux_2_17


@pytest.mark.skipif(READELF is None, reason="readelf (binutils) says what a library needs")
def test_the_library_needs_nothing_but_the_c_library():
    found = subprocess.run(
        [READELF, "--dynamic", KERNELS / "_compiled.so"], capture_output=True, text=True, check=True
    )
    needed = {line.split("[")[1].rstrip("]") for line in found.stdout.splitlines() if "(NEEDED)" in line}
    allowed = ("libc.", "libm.", "ld-linux", "ld-musl")
    assert needed
    assert all(name.startswith(allowed) for name in needed), needed


def glibc_versions(file):
    found = subprocess.run(
        [READELF, "--version-info", "--wide", file], capture_output=True, text=True, check=True
    )
    names = re.findall(r"Name: GLIBC_([0-9.]+)", found.stdout)
    return {tuple(map(int, name.split("."))) for name in names}


@pytest.mark.skipif(READELF is None, reason="readelf (binutils) says what a library needs")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_the_library_loads_on_the_oldest_glibc_of_its_wheel():
    versions = glibc_versions(KERNELS / "_compiled.so")
    assert versions
    assert max(versions) <= OLDEST_GLIBC


@pytest.mark.slow
@pytest.mark.skipif(ARM_COMPILER is None, reason="aarch64-linux-gnu-gcc is not installed")
@pytest.mark.skipif(READELF is None, reason="readelf (binutils) says what a library needs")
def test_a_library_built_for_arm_is_tagged_so_loads_under_an_emulator_and_is_right(
    build, tmp_path, monkeypatch
):
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "linux-aarch64")
    file, warnings, data = build(ARM_COMPILER)
    assert not warnings
    assert data["tag"] == "py3-none-linux_aarch64"
    header = subprocess.run([READELF, "--file-header", file], capture_output=True, text=True, check=True)
    assert "AArch64" in header.stdout
    assert max(glibc_versions(file)) <= OLDEST_GLIBC
    if ARM_EMULATOR is None:
        pytest.skip("built and tagged; qemu-aarch64 (qemu-user) is not installed, so the library was not run")
    program, driver = tmp_path / "driver", Path(__file__).with_name("driver.c")
    link = [ARM_COMPILER, "-O1", "-o", program, driver, file, "-lm", f"-Wl,-rpath,{file.parent}"]
    subprocess.run(link, check=True)
    libraries = "/usr/aarch64-linux-gnu"  # of Debian's libc6-arm64-cross
    done = subprocess.run(
        [ARM_EMULATOR, "-L", libraries, program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "neon\n"), done.stderr
