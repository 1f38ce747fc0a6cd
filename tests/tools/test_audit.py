"""`make audit` and the lock file, with stubs in the place of the programs: nothing is installed or asked."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

NONE = "echo 'No known vulnerabilities found' >&2"
FOUND = "echo 'Found 1 known vulnerability in 1 package' >&2; echo 'torch 2.13.0 CVE-1'; exit 1"
UNREACHED = "echo 'a long story' >&2; echo 'ERROR: Failed to resolve the service' >&2; exit 1"
SKIPPED = "echo 'ERROR:pip_audit._cli:torch: Dependency not found and could not be audited' >&2; exit 1"


@pytest.fixture
def audit(tmp_path):
    """Run `make audit` where pip-audit does this; `python -m pip check` succeeds unless told otherwise."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")

    def audit(pip_audit, python="exit 0"):
        (tmp_path / "bin").mkdir()
        for name, lines in (("pip-audit", pip_audit), ("python", python)):
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{lines}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        # -o: the environment counts as made, however old its stamp is.
        command = ["make", "--silent", "-o", f"{tmp_path}/.dev", f"VENV={tmp_path}", "audit"]
        (tmp_path / ".dev").touch()
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    return audit


def test_no_known_vulnerability_is_a_success(audit):
    done = audit(NONE)
    assert (done.returncode, done.stdout) == (0, "No known vulnerabilities found\n")


def test_a_known_vulnerability_fails_and_is_named(audit):
    done = audit(FOUND)
    assert done.returncode != 0
    assert "torch 2.13.0 CVE-1" in done.stdout


@pytest.mark.parametrize(
    ("said", "why"), [(UNREACHED, "Failed to resolve"), (SKIPPED, "torch: Dependency not")]
)
def test_a_service_that_does_not_answer_is_told_in_one_line_and_is_no_failure(said, why, audit):
    done = audit(said)
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    assert line.startswith("klimb: known vulnerabilities NOT AUDITED: ")
    assert why in line


def test_packages_that_do_not_fit_together_fail(audit):
    done = audit(NONE, "echo 'peft 0.1 requires torch, which is not installed.'; exit 1")
    assert done.returncode != 0
    assert "requires torch" in done.stdout


def locked():
    """Versions in the lock file by name; several where they depend on the system."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.lstrip().startswith("#"):
            pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)( ; .+)?", line)
            assert pin, f"not an exact pin: {line}"
            found.setdefault(canonicalize_name(pin[1]), []).append(pin[2])
    return found


def test_each_dependency_is_locked_at_a_version_that_it_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search(r"^LOCKED := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    named = extras.replace("--extra", "").split()
    # Trackers need libraries that do not fit beside each other: their tests have environments of their own.
    assert set(project["optional-dependencies"]) - set(named) == {"trackio", "tensorboard", "wandb", "mlflow"}
    groups = [project["dependencies"], *(project["optional-dependencies"][name] for name in named)]
    pins = locked()
    for requirement in map(Requirement, (line for group in groups for line in group)):
        versions = pins.get(canonicalize_name(requirement.name), [])
        assert versions, f"{requirement.name} is not in constraints.txt: make lock"
        assert all(requirement.specifier.contains(version) for version in versions), requirement
    assert pins["torch"] == ["2.13.0"]


def test_the_lock_file_names_no_host():
    assert "://" not in (ROOT / "constraints.txt").read_text()
