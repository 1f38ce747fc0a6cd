"""python -m tools.crashlab kills|power [options]: run a test of the crash laboratory; README.md beside this file."""

import sys

from tools.crashlab import kills, power

_TESTS = {"kills": kills.main, "power": power.main}


def main(arguments: list[str]) -> int:
    """Run the test that is named first, and return its exit code: 0 if every promise was kept."""
    if not arguments or arguments[0] not in _TESTS:
        print("usage: python -m tools.crashlab kills|power [options]; each has --help", file=sys.stderr)
        return 2
    return _TESTS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
