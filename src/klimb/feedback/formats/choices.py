"""The candidates of a row and which one was chosen, under the many names that data sets use."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from klimb.feedback.comparison import Comparison
from klimb.feedback.formats.fields import Fields, RefusedError
from klimb.feedback.formats.texts import answer
from klimb.io.show import Message, Text, cut, quote

VERDICTS = (
    "preferred", "preference", "better_response_id", "better_response", "better", "winner", "choice", "comparison",
    "selected", "verdict", "judgement", "judgment", "human_preference", "orig_preference", "pairwise",
)  # fmt: skip
"""Columns that say which candidate is preferred, the surest first."""
_STEMS = (
    "response", "answer", "completion", "output", "text", "reply", "generation", "candidate", "option", "summary",
    "conversation", "human_ref", "assistant", "model_output", "orig_response", "",
)  # fmt: skip
_ORDER = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
    "a",
    "b",
    "c",
    "d",
    "left",
    "right",
    "first",
    "second",
    "one",
    "two",
]
_NAME = re.compile(
    r"(?P<stem>.*?)[ _.\-]*(?P<suffix>\d|[a-d]|left|right|first|second|one|two)", re.IGNORECASE
)
_INNER = re.compile(
    r"(?:model|assistant|candidate|option|system)[ _.\-]*(?P<suffix>\d|[a-d])[ _.\-]+"
    r"(?P<stem>response|answer|completion|output|text|reply|generation)",
    re.IGNORECASE,
)
_BIGGER = re.compile(r"\[*(?P<one>[\w ]+?)\s*(?P<sign>>{1,3}|<{1,3}|={1,2})\s*(?P<other>[\w ]+?)\]*")
_BETTER = re.compile(
    r"(is)?(slightly|much|significantly|clearly|far|abit|alittle|somewhat)*(better|preferred|wins|best)"
)
_TIES = frozenset(
    ["tie", "tied", "ties", "equal", "equallygood", "draw", "both", "same", "bothgood", "nopreference"]
)
_SKIPS = frozenset(["skip", "skipped", "bothbad", "tiebothbad", "neither", "bothequallybad"])
_NOUNS = (
    "response|answer|completion|output|text|reply|generation|candidate|option|summary|model|assistant|choice|side"
    "|the"
)
_WORDS = {"left": 0, "right": 1, "first": 0, "second": 1}

Chosen = int | Literal["tie", "skip"]


@dataclass(frozen=True)
class Candidate:
    """A text that can be chosen.

    Attributes:
        name: Its column.
        suffix: What tells it from the others, such as `1`, `b` or `left`.
        text: The text.
    """

    name: str
    suffix: str
    text: str


@dataclass(frozen=True)
class Candidates:
    """The texts that can be chosen in a row, in order, and the messages that they share, where they are whole chats."""

    texts: list[Candidate]
    before: list[Message]

    def choose(self, value: Any) -> Chosen | None:
        """Which one a word or number means; None where that is not clear.

        A candidate is meant by its column's name, by what tells it from the others, and by `Response 1` and the like;
        of two, the better one also by `A>B`.
        """
        bigger = _BIGGER.fullmatch(value.strip()) if isinstance(value, str) else None
        if bigger is not None:
            return self._bigger(bigger)
        said = _plain(value)
        if said in _TIES:
            return "tie"
        if said in _SKIPS:
            return "skip"
        said = _BETTER.sub("", said) or said
        found = {number for number, one in enumerate(self.texts) if said == _plain(one.name)}
        if not found:
            pattern = re.compile(rf"(?:{_NOUNS})*(?P<suffix>\d|[a-d]|left|right|first|second|one|two)")
            match = pattern.fullmatch(said)
            if match is None:
                return None
            suffix = match["suffix"]
            found = {number for number, one in enumerate(self.texts) if suffix == one.suffix}
            if not found:
                found = self._by_order(suffix)
        return found.pop() if len(found) == 1 else None

    def _bigger(self, said: re.Match[str]) -> Chosen | None:
        """What `A>B`, `A<<B` or `A=B` mean, of two candidates."""
        one, other = self.choose(said["one"]), self.choose(said["other"])
        if len(self.texts) != 2 or {one, other} != {0, 1}:
            return None
        return "tie" if said["sign"][0] == "=" else one if said["sign"][0] == ">" else other

    def _by_order(self, suffix: str) -> set[int]:
        """Left and right, first and second, a and b are clear in themselves; numbers are not: some count from 0."""
        place = _WORDS.get(suffix, ord(suffix) - ord("a") if len(suffix) == 1 and suffix.isalpha() else None)
        if place is None or (suffix in _WORDS and len(self.texts) != 2) or place >= len(self.texts):
            return set()
        return {place}

    def compare(self, value: Any, prompt: Text, rater: str, name: str) -> list[Comparison]:
        """What a choice says of the candidates: the chosen one is preferred to each of the others.

        Raises:
            RefusedError: It is not clear what is meant, or two candidates are the same text.
        """
        chosen = self.choose(value)
        if chosen is None:
            names = ", ".join(one.name for one in self.texts)
            raise RefusedError(
                f"{name}: expected left, right or tie, or the name of a candidate ({names}), got {quote(value)}"
            )
        if chosen == "skip":
            return []
        if chosen == "tie":
            pairs = [(i, j) for i in range(len(self.texts)) for j in range(i + 1, len(self.texts))]
            return [self.pair(i, j, "tie", prompt, rater) for i, j in pairs]
        if len(self.texts) == 2:
            return [self.pair(0, 1, "left" if chosen == 0 else "right", prompt, rater)]
        others = [number for number in range(len(self.texts)) if number != chosen]
        return [self.pair(chosen, other, "left", prompt, rater) for other in others]

    def rank(self, ranks: Sequence[tuple[int, float]], prompt: Text, rater: str) -> list[Comparison]:
        """What ranks say, each of a candidate's number, the lowest best; equal ranks are ties."""
        found: list[Comparison] = []
        in_order = sorted(ranks)
        for place, (one, rank) in enumerate(in_order):
            for other, later in in_order[place + 1 :]:
                preferred = "tie" if rank == later else "left" if rank < later else "right"
                found.append(self.pair(one, other, preferred, prompt, rater))
        return found

    def pair(
        self, left: int, right: int, preferred: Literal["left", "right", "tie"], prompt: Text, rater: str
    ) -> Comparison:
        """A comparison of two of the candidates."""
        texts = self.texts[left].text, self.texts[right].text
        return compared(prompt, *texts, preferred, rater)


def compared(
    prompt: Text, left: str, right: str, preferred: Literal["left", "right", "tie"], rater: str
) -> Comparison:
    """A comparison.

    Raises:
        RefusedError: The two texts are the same.
    """
    if left == right:
        raise RefusedError(f"the two completions are the same: {cut(left)!r}")
    return Comparison(prompt, left, right, preferred, rater)


def find_candidates(fields: Fields, *, any_stem: bool = False) -> Candidates | None:
    """The columns that hold candidates: names alike but for their end, such as `response_a` and `response_b`.

    Args:
        fields: The row.
        any_stem: Whether they may have any name, so long as no other columns are alike in this way.

    Raises:
        RefusedError: A candidate is no text, or they are chats that differ before their last turn.
    """
    groups = _groups(fields)
    known = [stem for stem in _STEMS if len(groups.get(stem, {})) > 1]
    if not known and any_stem:
        known = [stem for stem, group in groups.items() if len(group) > 1]
        if len(known) > 1:
            return None
    if not known:
        return None
    group = groups[known[0]]
    texts: list[Candidate] = []
    before: list[Message] = []
    for suffix in sorted(group, key=_ORDER.index):
        shared, text = answer(group[suffix], fields.get(group[suffix]))
        if texts and shared != before:
            raise RefusedError(
                f"{texts[0].name} and {group[suffix]}: chats that differ before their last turn"
            )
        before = shared
        texts.append(Candidate(group[suffix], suffix, text))
    return Candidates(texts, before)


def _groups(fields: Fields) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    for name in fields:
        match = (_INNER.fullmatch(name) or _NAME.fullmatch(name)) if isinstance(name, str) else None
        if match is not None and fields.look(name) is not None and not _is_number(fields.look(name)):
            group = groups.setdefault(match["stem"].lower(), {})
            group.setdefault(match["suffix"].lower(), name)
    for stem, group in groups.items():
        kinds = [{key: name for key, name in group.items() if key.isdigit()}]
        kinds += [{key: name for key, name in group.items() if key in "abcd"}]
        kinds += [{key: group[key] for key in _ORDER[at : at + 2] if key in group} for at in (14, 16, 18)]
        groups[stem] = max(kinds, key=len)
    return groups


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _plain(value: Any) -> str:
    """A word or number without case, spaces and signs."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    if isinstance(value, float):
        if not value.is_integer():
            return ""
        value = int(value)
    return re.sub(r"[\s_.\-()\[\]:,]+", "", str(value).lower())
