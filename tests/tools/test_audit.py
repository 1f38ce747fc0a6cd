"""The audit of what is installed."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def audit(load_tool):
    return load_tool("audit")


def test_every_line_of_the_constraints_is_an_exact_pin_of_its_own(audit):
    assert len(audit.read_pins(audit.CONSTRAINTS.read_text())) > 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a==1\nb>=2\n", "line 2: expected NAME==VERSION, got 'b>=2'"),
        ("a\n", "line 1: expected NAME==VERSION"),
        ("# x\na_b==1\nA.B==1\n", "line 3: A.B is pinned twice"),
        ("a==1 --hash=sha256:00\n", "line 1: expected NAME==VERSION"),
        ("a @ http://host/a.whl\n", "line 1: expected NAME==VERSION"),
    ],
)
def test_what_is_no_exact_pin_is_named(audit, text, message):
    with pytest.raises(ValueError, match=message):
        audit.read_pins(text)


def test_versions_that_differ_and_packages_that_are_not_pinned_are_named(audit):
    pins = {"a-b": "1.0", "torch": "2.0", "absent": "3"}
    found = audit.compare(pins, {"a-b": "1.1", "torch": "2.0+cpu", "stray": "4", "pip": "23", "klimb": "0"})
    assert (found.num_pinned, found.num_installed) == (3, 2)
    assert found.problems == ["a-b 1.1 is installed, 1.0 is pinned", "stray 4 is installed and not pinned"]


def test_names_are_compared_as_the_index_compares_them(audit):
    assert audit.normalised("Array_API.strict") == "array-api-strict"


VULNERABLE = {"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1"}]}]}
SOUND = {"dependencies": [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "x"}]}


@pytest.mark.parametrize(
    ("out", "err", "is_sound", "said"),
    [
        (json.dumps(SOUND), "", True, "no known vulnerability in 1 packages, 1 skipped"),
        (
            json.dumps({"dependencies": SOUND["dependencies"][1:]}),
            "",
            None,
            "nothing of any of 1 packages: x",
        ),
        (json.dumps(VULNERABLE), "Found 1", False, "1 known vulnerabilities: a 1: PYSEC-1"),
        ("", "python: No module named pip_audit", None, "pip-audit is not installed"),
        ("", "ConnectionError: Failed to resolve 'pypi.org'", None, "pip-audit failed: ConnectionError"),
        ("", "pip_audit: error: unrecognised arguments", False, "pip-audit failed: pip_audit: error"),
    ],
)
def test_an_answer_and_no_answer_are_told_apart(audit, monkeypatch, out, err, is_sound, said):
    done = subprocess.CompletedProcess([], 0, out, err)
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: done)
    assert audit.ask_pip_audit()[0] is is_sound
    assert said in audit.ask_pip_audit()[1]


def test_no_answer_in_time_is_said(audit, monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("pip-audit", 600)

    monkeypatch.setattr(audit.subprocess, "run", hang)
    assert audit.ask_pip_audit() == (None, "pip-audit did not answer within 600 s")
