"""Progress of long work: an occasional line with the rate and the time left.

Lines and nothing else, so that a log file shows them as a terminal does; work that is soon done prints none.
"""

import sys
import time
from collections.abc import Callable

EVERY = 10.0  # seconds from line to line

Say = Callable[[str], None]
"""Takes a line for a person."""


def tell(line: str) -> None:
    """Print a line at once, also into a file."""
    print(line, flush=True)  # noqa: T201


def warn(line: str) -> None:
    """Print a warning to standard error."""
    print(f"klimb: warning: {line}", file=sys.stderr, flush=True)  # noqa: T201


def ignore(_: str) -> None:
    """Tell nobody."""


class Progress:
    """Counts what is done, and says how far it is once in ten seconds.

    Args:
        what: The work, such as "reading".
        total: How much there is.
        unit: Of what, in the plural.
        say: Takes the lines.
        now: Tells the time in seconds.
    """

    def __init__(
        self, what: str, total: int, unit: str, say: Say, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._total, self._unit, self._say, self._now = what, total, unit, say, now
        self._done = 0
        self._start = self._said = now()

    def advance(self, amount: int = 1) -> None:
        """Note that so much more is done; the last line is left to whoever says what came of it."""
        self._done += amount
        now = self._now()
        if now - self._said < EVERY or self._done >= self._total:
            return
        self._said = now
        rate = self._done / (now - self._start)
        left = (self._total - self._done) / rate if rate else 0.0
        self._say(
            f"  {self._what}: {self._done:,} of {self._total:,} {self._unit} ({self._done / self._total:.0%}), "
            f"{rate:,.{0 if rate >= 10 else 2}f} {self._unit}/s, about {show_seconds(left)} left"
        )


def show_seconds(seconds: float) -> str:
    """A span of time for a reader."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
