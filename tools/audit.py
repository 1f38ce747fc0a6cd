"""Check what is installed against constraints.txt, and, where its service can be reached, for known vulnerabilities.

python tools/audit.py [--offline] [--python PYTHON]

Offline: every pinned version is what is installed, where it is installed at all, and everything installed is pinned.
Hashes are not checked: constraints.txt has none. Online: pip-audit asks the Python package index's advisories about
every pin; where pip-audit is missing or its service does not answer, that is said, and is no failure.
"""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
OWN = frozenset({"klimb", "pip", "setuptools", "wheel"})
"""What an environment has without its being pinned: klimb itself, and what installs the rest."""

_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;#]+)")
_UNREACHED = (
    "connection",
    "timed out",
    "timeout",
    "resolve",
    "ssl",
    "proxy",
    "unreachable",
    "http error",
    "service",
)
_PATIENCE = 600  # seconds


@dataclass(frozen=True)
class Pins:
    """How the installed packages compare with the pinned ones.

    Attributes:
        num_pinned: Pins.
        num_installed: Packages that are installed and pinned.
        problems: What differs, a sentence each.
    """

    num_pinned: int
    num_installed: int
    problems: list[str]


def read_pins(text: str) -> dict[str, str]:
    """Read the pins of a constraints file: version by normalised name.

    Raises:
        ValueError: A line is no exact pin, or a name is pinned twice.
    """
    pins: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.partition("#")[0].strip()
        if not stripped:
            continue
        pin = _PIN.fullmatch(stripped)
        if pin is None:
            raise ValueError(f"line {number}: expected NAME==VERSION, got {stripped!r}")
        name = normalised(pin[1])
        if name in pins:
            raise ValueError(f"line {number}: {pin[1]} is pinned twice")
        pins[name] = pin[2]
    return pins


def normalised(name: str) -> str:
    """A package's name in the one form in which the index compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Versions of what is installed in this environment, by normalised name."""
    return {normalised(found.metadata["Name"]): found.version for found in metadata.distributions()}


def compare(pins: dict[str, str], present: dict[str, str]) -> Pins:
    """Compare pins with what is present; a build's local part, such as +cpu, counts as the same version."""
    problems = [
        f"{name} {present[name]} is installed, {version} is pinned"
        for name, version in pins.items()
        if name in present and present[name].partition("+")[0] != version.partition("+")[0]
    ]
    problems += [
        f"{name} {version} is installed and not pinned"
        for name, version in sorted(present.items())
        if name not in pins and name not in OWN
    ]
    return Pins(len(pins), len(pins.keys() & present.keys()), problems)


def ask_pip_audit(python: str = sys.executable) -> tuple[bool | None, str]:
    """Ask for known vulnerabilities.

    Args:
        python: The Python that has pip-audit.

    Returns:
        Whether there are none, or None where that could not be found out, and what was said.
    """
    command = [
        python,
        "-m",
        "pip_audit",
        "--requirement",
        str(CONSTRAINTS),
        "--no-deps",
        "--disable-pip",
    ]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return None, f"pip-audit did not answer within {_PATIENCE} s"
    except OSError as error:
        return None, f"pip-audit cannot be run: {error}"
    if "No module named pip_audit" in done.stderr:
        return None, "pip-audit is not installed: make audit installs it"
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        is_unreached = any(sign in done.stderr.lower() for sign in _UNREACHED)
        return (None if is_unreached else False), f"pip-audit failed: {last[-300:]}"
    return _read_answer(found)


def _read_answer(found: list[dict[str, Any]]) -> tuple[bool | None, str]:
    known = [f"{d['name']} {d['version']}: {v['id']}" for d in found for v in d.get("vulns", [])]
    skipped = sum("skip_reason" in d for d in found)
    if known:
        return False, f"{len(known)} known vulnerabilities: " + "; ".join(known)
    if skipped == len(found):
        why = found[0]["skip_reason"] if found else "it was asked of none"
        return None, f"the service told nothing of any of {skipped} packages: {why}"
    return True, f"no known vulnerability in {len(found) - skipped} packages, {skipped} skipped"


def main() -> int:
    """Print what was found; 0 where nothing speaks against it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--offline", action="store_true", help="do not ask for known vulnerabilities")
    parser.add_argument("--python", default=sys.executable, help="the Python that has pip-audit")
    arguments = parser.parse_args()
    pins = compare(read_pins(CONSTRAINTS.read_text(encoding="utf-8")), installed())
    print(f"pins: {pins.num_pinned} pinned, {pins.num_installed} of them installed; hashes are not checked")
    for problem in pins.problems:
        print(f"  {problem}")
    if arguments.offline:
        print("known vulnerabilities: not asked for (--offline)")
        return int(bool(pins.problems))
    is_sound, said = ask_pip_audit(arguments.python)
    print(f"known vulnerabilities: {'NOT AUDITED: ' if is_sound is None else ''}{said}")
    return int(bool(pins.problems) or is_sound is False)


if __name__ == "__main__":
    sys.exit(main())
