"""Call the definition with generated arguments, good and bad, and count what came of it.

python benchmarks/fuzz_update.py [--cases 100000]

The cases and the property are those of tests/core/test_properties.py.
"""

import argparse
import importlib.util
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings


def main() -> None:
    """Run the cases and print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100_000)
    arguments = parser.parse_args()
    file = Path(__file__).parent.parent / "tests" / "core" / "test_properties.py"
    spec = importlib.util.spec_from_file_location("properties", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(file)
    properties = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(properties)
    counts: Counter[str] = Counter()

    @settings(
        max_examples=arguments.cases,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(properties.calls())
    def run(call: object) -> None:
        counts[properties.check_call(call)] += 1

    start = time.perf_counter()
    run()
    print(
        f"{sum(counts.values()):,} calls in {time.perf_counter() - start:.0f} s: "
        + ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
    )


if __name__ == "__main__":
    main()
