"""One judgement: which of two completions of a prompt someone prefers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from klimb.io.show import Text

Preferred = Literal["left", "right", "tie"]

OUTCOMES: dict[Preferred, int] = {"left": 1, "right": -1, "tie": 0}
"""A judgement as a number, as in `klimb.core.preferences`."""


@dataclass(frozen=True)
class Comparison:
    """Two completions of a prompt, and which of them was preferred.

    Attributes:
        prompt: What both answer; "" where the texts stand alone.
        left: One completion.
        right: The other.
        preferred: Which of the two, or neither.
        rater: Who said so, where that is known.
        place: File and line that it was read from, for messages.
        shown_left: Which of them the rater saw on the left, where that is known.
        seconds: How long it took, where that is known.
    """

    prompt: Text
    left: str
    right: str
    preferred: Preferred
    rater: str = ""
    place: str = field(default="", compare=False)
    shown_left: Literal["left", "right", ""] = field(default="", compare=False)
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Rating:
    """A completion and the number that it was given.

    Attributes:
        prompt: What it answers; "" where it stands alone.
        completion: The text.
        score: The number, more for better.
        rater: Who gave it, where that is known.
        place: File and line that it was read from, for messages.
    """

    prompt: Text
    completion: str
    score: float
    rater: str = ""
    place: str = field(default="", compare=False)


def ranked(prompt: Text, completions: Sequence[str], rater: str = "") -> list[Comparison]:
    """Compare each of some completions, given best first, with all that are worse."""
    return [
        Comparison(prompt, better, worse, "left", rater)
        for place, better in enumerate(completions)
        for worse in completions[place + 1 :]
        if better != worse
    ]
