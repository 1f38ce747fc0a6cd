"""The report on raters, made from their answers."""

import math
import shlex
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from klimb.core.binomial import wilson_interval
from klimb.feedback.records import Choice, Side
from klimb.io.show import Text, printable

Flag = Literal["place", "undecided", "repeats", "circles", "agreement", "opposite", "speed"]
"""What may be wrong with a rater's answers."""


@dataclass(frozen=True)
class Opinion:
    """What a rater said of two texts.

    Attributes:
        rater: Who; "" where that is not known.
        prompt: What both texts answer.
        first: One text.
        second: The other.
        preferred: The judgement.
        shown_left: Which of them was answer 1, on the left; "" where that is not known.
        seconds: How long it took.
    """

    rater: str
    prompt: Text
    first: str
    second: str
    preferred: Choice
    shown_left: Side = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Share:
    """A part of what was counted.

    Attributes:
        count: How often.
        total: Of how many.
    """

    count: float = 0
    total: int = 0

    @property
    def value(self) -> float:
        """The share; NaN of nothing."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval."""
        return wilson_interval(self.count, self.total)

    @property
    def words(self) -> str:
        """The share as a count."""
        return f"{self.count:,.{0 if self.count == int(self.count) else 1}f} of {self.total:,}"

    @property
    def percent(self) -> str:
        """The share, and of how many, for a cell of a table; – of nothing."""
        return f"{self.value:.0%} of {self.total:,}" if self.total else "–"


@dataclass(frozen=True)
class Account:
    """One rater's answers.

    Attributes:
        rater: Who; "" for all of whom nothing is known, who are not tested as one.
        num_judgements: All of them.
        num_ties: Of them, ties and "both bad".
        num_skipped: Of them, skips.
        left: Preferences for answer 1, of those whose places are known.
        repeats: The same answer as before, of pairs of texts that were judged again.
        circles: Triples a, b, c of a prompt of which a was preferred to b, b to c and c to a, of all that were judged.
        agreement: The same preference as others, of pairs that others have a preference about too; several others of
            a pair are averaged, and those who answer by place, against themselves or in circles are left out.
        median_seconds: Of a judgement, where that was measured.
        flags: What looks wrong.
    """

    rater: str
    num_judgements: int
    num_ties: int
    num_skipped: int
    left: Share
    repeats: Share
    circles: Share
    agreement: Share
    median_seconds: float | None
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class Conflict:
    """Two raters who do not judge alike, of whom neither is known to be the odd one out.

    Attributes:
        raters: The two.
        agreement: The same preference, of pairs that both have one about.
        is_opposite: Whether they agree less than chance would, not just no more.
    """

    raters: tuple[str, str]
    agreement: Share
    is_opposite: bool

    @property
    def sentence(self) -> str:
        """What looks wrong."""
        one, other = (printable(rater) for rater in self.raters)
        if self.is_opposite:
            return (
                f"{one} and {other} prefer opposite answers: they agree on {self.agreement.words} pairs that both "
                "judged; they look for different things, or one of them mixes up the answers"
            )
        return (
            f"{one} and {other} agree on {self.agreement.words} pairs that both judged, no better than two coins: one "
            "of them may answer at random, or they look for different things"
        )


@dataclass(frozen=True)
class RaterReport:
    """All raters of some feedback.

    Attributes:
        accounts: Each rater's, the most judgements first.
        conflicts: Pairs of raters who do not judge alike.
    """

    accounts: list[Account] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)

    @property
    def suspects(self) -> list[Account]:
        """Raters with a flag."""
        return [account for account in self.accounts if account.flags]

    @property
    def warnings(self) -> list[str]:
        """What looks wrong, a sentence each; empty where nothing does."""
        lines = [f"{sentence(one, flag)}." for one in self.suspects for flag in one.flags]
        return lines + [f"{conflict.sentence}." for conflict in self.conflicts]

    @property
    def advice(self) -> str:
        """What to do about it; "" where nothing looks wrong."""
        if self.suspects:
            names = " ".join(shlex.quote(printable(one.rater)) for one in self.suspects)
            return f"Ask them how they judge, or learn without them: klimb reward train … --without-raters {names}"
        if self.conflicts:
            name = shlex.quote(printable(self.conflicts[0].raters[0]))
            return (
                "A reward cannot please both: agree on what to look for (klimb label --guidelines), or learn without "
                f"one of them: klimb reward train … --without-raters {name}"
            )
        return ""

    @property
    def lines(self) -> list[str]:
        """Warnings and advice, for the terminal."""
        return [*self.warnings, self.advice] if self.warnings else []

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "raters": [
                asdict(one) | {"warnings": [sentence(one, flag) for flag in one.flags]}
                for one in self.accounts
            ],
            "conflicts": [asdict(one) | {"warning": one.sentence} for one in self.conflicts],
            "advice": self.advice,
        }


def sentence(account: Account, flag: Flag) -> str:
    """Say what looks wrong with a rater's answers."""
    left, agreement = account.left, account.agreement.words
    side, favoured = (
        ("1", left) if left.count * 2 > left.total else ("2", Share(left.total - left.count, left.total))
    )
    words: dict[Flag, str] = {
        "place": f"prefers answer {side} in {favoured.words} pairs, whatever it says: sides are drawn at random, so "
        "that a rater who reads is near one half",
        "undecided": f"preferred neither answer in any of {account.num_judgements:,} pairs: a reward learns nothing "
        "from them",
        "repeats": f"gave the same answer again in {account.repeats.words} pairs that came twice, no better than "
        "a coin",
        "circles": f"prefers A to B, B to C and C to A in {account.circles.words} triples, about as often as a coin "
        "(a quarter): careless, or the answers hardly differ",
        "agreement": f"agrees with the other raters on {agreement} shared pairs, no better than a coin",
        "opposite": f"agrees with the other raters on {agreement} shared pairs, less than a coin would: perhaps the "
        "question or the keys were misunderstood",
        "speed": f"takes {account.median_seconds or 0.0:.1f} s per pair (median), too little to read two answers",
    }
    return f"{printable(account.rater)} {words[flag]}"
