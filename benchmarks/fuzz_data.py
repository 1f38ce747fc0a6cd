"""Read damaged files of prompts and of feedback by the thousand, and count what came of them.

python benchmarks/fuzz_data.py [--cases 10000] [--first 0]

The cases and what must hold of each are those of tests/test_hostile_files.py: a KlimbError or rows, and every line of a
file either in a row, blank, or a header. They run in processes of their own, a few hundred each, so that one that
crashes is counted and named too.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
AT_ONCE = 500


def load_cases() -> Any:
    """Load the tests' module."""
    file = ROOT / "tests" / "test_hostile_files.py"
    spec = importlib.util.spec_from_file_location("hostile_files", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_cases(first: int, count: int) -> None:
    """Run cases one by one, and print a line of JSON before and after each."""
    cases = load_cases()
    for number in range(first, first + count):
        print(json.dumps({"begun": number}), flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                name, way, outcome = cases.check_case(number, Path(scratch))
            except Exception as error:
                name, way = cases.KINDS[number % len(cases.KINDS)], "?"
                is_lost = isinstance(error, AssertionError)
                outcome = "ROWS LOST" if is_lost else f"TRACEBACK {type(error).__name__}"
                traceback.print_exc()
        print(json.dumps({"name": name, "way": way, "outcome": outcome}), flush=True)


def run_part(first: int, count: int) -> tuple[Counter[tuple[str, str, str]], list[str]]:
    """Run cases in processes of their own, one more after each crash."""
    counts: Counter[tuple[str, str, str]] = Counter()
    findings: list[str] = []
    last = first + count
    while first < last:
        command = [
            sys.executable,
            __file__,
            "--in-process",
            "--first",
            str(first),
            "--cases",
            str(last - first),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        begun = [line["begun"] for line in lines if "begun" in line]
        for number, line in zip(begun, (line for line in lines if "begun" not in line), strict=False):
            counts[line["name"], line["way"], line["outcome"]] += 1
            if line["outcome"].isupper() or line["outcome"].startswith("TRACEBACK"):
                findings.append(f"case {number}, {line['name']}: {line['outcome']}")
        if done.returncode != 0:
            crashed = begun[-1] if begun else first
            counts["?", "?", "CRASH"] += 1
            findings.append(f"case {crashed}: CRASH, exit code {done.returncode}: {done.stderr[-300:]}")
            first = crashed + 1
        else:
            if findings:
                sys.stderr.write(done.stderr)
            first = last
    return counts, findings


def main() -> None:
    """Print the counts by what was done to the files, and all findings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_process:
        run_cases(arguments.first, arguments.cases)
        return
    start = time.perf_counter()
    counts: Counter[tuple[str, str, str]] = Counter()
    findings: list[str] = []
    end = arguments.first + arguments.cases
    for first in range(arguments.first, end, AT_ONCE):
        part, found = run_part(first, min(AT_ONCE, end - first))
        counts += part
        findings += found
    print(f"{sum(counts.values()):,} files in {time.perf_counter() - start:.0f} s")
    for title, index in (("by file", 0), ("by damage", 1)):
        print(f"\n{title}")
        for key in sorted({each[index] for each in counts}):
            outcomes: Counter[str] = Counter()
            for each, count in counts.items():
                if each[index] == key:
                    outcomes[each[2]] += count
            print(f"  {key:<18} " + ", ".join(f"{count:,} {name}" for name, count in outcomes.most_common()))
    print(f"\n{len(findings)} findings: no traceback, crash or lost row" if not findings else "\nFINDINGS")
    print("\n".join(findings))


if __name__ == "__main__":
    main()
