"""Rewards of a batch, some of which may have failed, and how many failures are allowed.

Axes: N completions.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

from klimb.errors import RewardError
from klimb.io.show import quote, safe

_LONGEST_TEXT = 80  # characters of a completion in a message
_LONGEST_REASON = 500  # characters: what a function raises may hold a whole prompt


@dataclass(frozen=True)
class Failed:
    """Stands in a reward's answer for a completion that could not be judged: what went wrong, in a sentence."""

    reason: str


Answer: TypeAlias = float | Failed | None
"""A finite number, None where there is no opinion, or what went wrong."""


@dataclass(frozen=True)
class Failure:
    """A completion that a reward or a judge could not judge.

    Attributes:
        index: Which of the batch.
        num_completions: N.
        text: The completion.
        reason: What went wrong, and where.
    """

    index: int
    num_completions: int
    text: str
    reason: str

    @classmethod
    def of(cls, failed: Failed, index: int, texts: Sequence[str]) -> "Failure":
        """Note that one of some completions has failed; the reason is made fit for files and terminals."""
        reason = safe(failed.reason)
        shown = reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON] + "…"
        return cls(index, len(texts), texts[index], shown)

    def __str__(self) -> str:
        text, rest = self.text[:_LONGEST_TEXT], "…" if len(self.text) > _LONGEST_TEXT else ""
        return f"{self.reason}, at completion {self.index} of {self.num_completions}: {text!r}{rest}"


def answers(name: str, values: Any, num_completions: int) -> list[Answer]:
    """Bring what a reward returned to one answer a completion.

    Args:
        name: The reward's name.
        values: What it returned: anything.
        num_completions: N.

    Returns:
        (N,): a number where there is a finite one, None where there was None, and `Failed` elsewhere; all of them
        `Failed` where the values cannot be told apart.
    """
    expected = f"reward {name}: expected"
    try:
        given = None if isinstance(values, Mapping | Set | str | bytes) else list(values)
    except TypeError:
        given = None
    if given is None:  # nothing in it has a place, or its places are not numbers
        kind = type(values).__name__
        failed = Failed(f"{expected} a list of {num_completions} numbers, one per completion, got {kind}")
        return [failed] * num_completions
    if len(given) != num_completions:
        failed = Failed(f"{expected} {num_completions} numbers, one per completion, got {len(given)}")
        return [failed] * num_completions
    return [_answer(expected, value) for value in given]


class Tolerance:
    """How many completions may have no reward, of a step or of an evaluation, before the run stops.

    Args:
        max_failed: The share that may fail.
        num_completions: How many completions there are in all.
    """

    def __init__(self, max_failed: float, num_completions: int) -> None:
        self._max_failed = max_failed
        self._num_completions = num_completions
        self._num_failed = 0
        self._first: Failure | None = None

    def take(self, failures: Sequence[Failure]) -> None:
        """Count the failures of some of the completions; one of which several rewards failed counts once.

        Raises:
            RewardError: Too many have failed by now; the message tells of the first.
        """
        self._num_failed += len({failure.index for failure in failures})
        if self._first is None and failures:
            self._first = failures[0]
        if self._num_failed / self._num_completions > self._max_failed:
            raise RewardError(
                f"{self._first}; {self._num_failed} of {self._num_completions} completions failed, more than "
                f"max_failed {self._max_failed:g} allows: fix the reward, or raise --max-failed"
            )


def _answer(expected: str, value: Any) -> Answer:
    if value is None or isinstance(value, Failed):
        return value
    if isinstance(value, str | bytes):
        return Failed(f"{expected} a number or None, got {quote(value)}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: tensors
        return Failed(f"{expected} a number or None, got {quote(value)}")
    if not math.isfinite(number):
        return Failed(f"{expected} a finite number, got {number}")
    return number
