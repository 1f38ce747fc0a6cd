"""What a store of feedback holds: completions and their origin, pairs that are asked about, judgements."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from klimb.io.show import Text

Choice = Literal["first", "second", "tie", "both_bad", "skip"]
"""What may be said of a pair."""

Side = Literal["first", "second", ""]


@dataclass(frozen=True)
class Candidate:
    """A completion and where it came from.

    Attributes:
        text: The completion.
        source: Model, checkpoint and settings that it was sampled with; empty where nothing is known.
    """

    text: str
    source: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A pair to be judged.

    Attributes:
        pair_id: The store's number of the pair.
        prompt: What both completions answer.
        first: The completion that the store had first; which is shown left is the asker's business.
        second: The other.
    """

    pair_id: int
    prompt: Text
    first: str
    second: str


@dataclass(frozen=True)
class Answer:
    """What somebody says of a pair.

    Attributes:
        pair_id: The pair.
        rater: Who says it.
        preferred: What is said.
        key: Chosen by the sender; the same key twice is one judgement.
        shown_left: Which completion was shown left; "" where that is not known.
        seconds: How long it took.
        note: What the rater adds.
    """

    pair_id: int
    rater: str
    preferred: Choice
    key: str
    shown_left: Side = ""
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Judgement:
    """A judgement that stands, with all about it.

    Attributes:
        id: The store's number of it.
        pair_id: Of the pair.
        prompt: What both completions answer.
        first: One completion.
        second: The other.
        preferred: The judgement.
        rater: Who said it; "" where that is not known.
        shown_left: Which completion was shown left; "" where that is not known.
        seconds: How long it took.
        note: What the rater added.
        judged_at: When, in seconds since 1970, UTC.
        key: Under which it was sent.
    """

    id: int
    pair_id: int
    prompt: Text
    first: Candidate
    second: Candidate
    preferred: Choice
    rater: str
    shown_left: Side
    seconds: float | None
    note: str
    judged_at: float
    key: str = field(default="", compare=False)


@dataclass(frozen=True)
class JudgementRecord:
    """A judgement with all that a store keeps of it, to be brought into another store.

    Attributes:
        rater: Who said it; "" where that is not known.
        preferred: The judgement.
        key: Under which it was sent; "" where it has none yet.
        shown_left: Which completion was shown left; "" where that is not known.
        seconds: How long it took.
        note: What the rater added.
        judged_at: When, in seconds since 1970, UTC; None where that is not known.
        withdrawn_at: When it was taken back; None where it stands.
        number: Its place among the judgements of its store, lowest first.
    """

    rater: str
    preferred: Choice
    key: str = ""
    shown_left: Side = ""
    seconds: float | None = None
    note: str = ""
    judged_at: float | None = None
    withdrawn_at: float | None = None
    number: int = 0


@dataclass(frozen=True)
class PairRecord:
    """A pair with all that a store keeps of it, to be brought into another store.

    Attributes:
        prompt: What both completions answer.
        first: One completion.
        second: The other.
        judgements: All judgements of it, also those that were taken back.
        priority: It is asked about first where this is higher.
        assigned: Who is being asked about it, and since when, in seconds since 1970, UTC.
        numbers: Places of the two among the completions of their store.
        place: File and line that it was read from, for messages.
    """

    prompt: Text
    first: Candidate
    second: Candidate
    judgements: tuple[JudgementRecord, ...] = ()
    priority: float = 0.0
    assigned: tuple[tuple[str, float], ...] = ()
    numbers: tuple[int, int] = (0, 0)
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Added:
    """What a store took of feedback from elsewhere.

    Attributes:
        num_comparisons: Comparisons that are new.
        num_pairs: Pairs that are new.
        num_judgements: Judgements of klimb's own that are new.
        num_withdrawn: Judgements that it had and that were taken back since.
        refused: Place and reason of what goes against what the same rater said before.
    """

    num_comparisons: int = 0
    num_pairs: int = 0
    num_judgements: int = 0
    num_withdrawn: int = 0
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far the judging is, for one rater.

    Attributes:
        num_pairs: Pairs in the store.
        num_done: Of them, those with as many judgements as are wanted; skips do not count.
        num_own: The rater's judgements that stand, skips included.
        median_seconds: Of the rater's last judgements.
    """

    num_pairs: int
    num_done: int
    num_own: int
    median_seconds: float | None


@dataclass(frozen=True)
class RaterSummary:
    """One rater's work.

    Attributes:
        rater: Who; "" for all of whom nothing is known.
        num_judgements: That stand, skips included.
        num_skipped: Of them, pairs that were skipped.
        median_seconds: Of a judgement.
    """

    rater: str
    num_judgements: int
    num_skipped: int
    median_seconds: float | None


@dataclass(frozen=True)
class Agreement:
    """How much raters agree about the pairs that two or more of them judged.

    Attributes:
        num_pairs: Such pairs.
        share: Mean share of a pair's raters, two by two, who said the same.
        alpha: Krippendorff's α: 1 where all agree, 0 where they agree as chance would.
    """

    num_pairs: int
    share: float
    alpha: float


def as_json(value: Any) -> str:
    """One form for one value, so that equal values are equal texts."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
