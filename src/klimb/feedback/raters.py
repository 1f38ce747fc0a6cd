"""Tests of raters: position bias, random answers, contradicting themselves, disagreeing with the others.

Nothing here knows which answer is right. A rater who flips a coin about pairs that nobody else judged, each once,
leaves no trace in answers; then only the reward's test on held-out prompts shows it (`klimb.reward.learn.verdict`).
"""

import itertools
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from klimb.core.binomial import chance_log_odds, wilson_interval
from klimb.errors import DataError
from klimb.feedback.comparison import Comparison
from klimb.feedback.formats import Feedback
from klimb.feedback.rater_report import Account, Conflict, Flag, Opinion, RaterReport, Share
from klimb.feedback.records import Judgement, Side

_COIN = 0.5  # of two answers
_STRAIGHT_BY_CHANCE = 0.75  # of eight ways to answer three pairs of three texts two run in a circle
_NOISY: frozenset[Flag] = frozenset(("place", "repeats", "circles"))  # who is no measure for others
_MOST_NAMED = 20  # pairs of raters that are named one by one
Key = tuple[str, str, str]
"""A pair whichever way round: prompt, and its two texts in order."""


@dataclass(frozen=True)
class Limits:
    """When a rater is flagged.

    Attributes:
        least: Judgements from which on a rater's own answers are tested. Fewer prove nothing.
        place_quantile: The place's interval must exclude one half at this quantile: 3.29 is 99.9 %, since it is looked
            at again and again while people judge.
        least_lean: And the share must be so far from one half: a slight liking for a side costs few judgements.
        most_errors: ε, the share of answers that a fair rater turns over. A fair rater then gives the same answer
            again, or as another such rater, in 1 − 2ε(1 − ε) of pairs, 0.70, and ε(1 − ε) of triples run in a circle,
            0.15.
        odds: How much likelier chance must make the answers than a fair rater does. Fair raters get there with a
            probability of at most one in so many, however often one looks; triples overlap, so that for circles this
            is no theorem, and the tests simulate it.
        opposite_quantile: Two raters are opposed where the interval of their agreement lies below one half: 2.58 is
            99 %. Fair raters agree more than half the time, so that it hardly happens to them.
        least_shared: Pairs that two raters must share before they are compared.
        fastest: Median seconds a judgement below which nobody reads two texts: naming one of two known signs takes
            about half a second, with nothing read.
    """

    least: int = 20
    place_quantile: float = 3.29
    least_lean: float = 0.1
    most_errors: float = 0.18
    odds: float = 50.0
    opposite_quantile: float = 2.58
    least_shared: int = 7
    fastest: float = 1.0

    @property
    def fair_agreement(self) -> float:
        """1 − 2ε(1 − ε): both right, or both wrong."""
        return 1 - 2 * self.most_errors * (1 - self.most_errors)

    @property
    def fair_straight(self) -> float:
        """1 − ε(1 − ε), the share of triples without a circle.

        Of a > b, b > c, a > c a circle turns over the last alone, ε(1 − ε)², or the first two alone, ε²(1 − ε).
        """
        return 1 - self.most_errors * (1 - self.most_errors)


LIMITS = Limits()
"""The limits that klimb uses."""


def opinions_of(judgements: Iterable[Judgement]) -> list[Opinion]:
    """A store's judgements, as what this module reads."""
    return [
        Opinion(
            said.rater,
            said.prompt,
            said.first.text,
            said.second.text,
            said.preferred,
            said.shown_left,
            said.seconds,
        )
        for said in judgements
    ]


def opinions_in(comparisons: Iterable[Comparison]) -> list[Opinion]:
    """Comparisons to learn from, as what this module reads; they hold no skips."""
    sides: dict[str, Side] = {"left": "first", "right": "second"}
    return [
        Opinion(
            said.rater,
            said.prompt,
            said.left,
            said.right,
            sides.get(said.preferred) or "tie",
            sides.get(said.shown_left, ""),
            said.seconds,
        )
        for said in comparisons
    ]


def leave_out(feedback: Feedback, raters: Sequence[str]) -> tuple[Feedback, int]:
    """Leave out what some raters said.

    Returns:
        What others said, and how many judgements were left out.

    Raises:
        DataError: Nobody of such a name judged there, or nobody else did.
    """
    said = [*feedback.comparisons, *feedback.ratings]
    counts = Counter(one.rater for one in said)
    known = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common(_MOST_NAMED) if name)
    for rater in raters:
        if rater not in counts:
            who = f"the raters are {known}" if known else "no judgement names its rater"
            raise DataError(f"without_raters: nobody called {rater!r} judged; {who}")
    left = replace(
        feedback,
        comparisons=[one for one in feedback.comparisons if one.rater not in raters],
        ratings=[one for one in feedback.ratings if one.rater not in raters],
    )
    num_left = len(left.comparisons) + len(left.ratings)
    if num_left == 0:
        raise DataError(f"without_raters: nobody else judged; the raters are {known}")
    return left, len(said) - num_left


def account_for(opinions: Iterable[Opinion], limits: Limits = LIMITS) -> RaterReport:
    """Count what each rater said, and flag what a fair rater would hardly say.

    Args:
        opinions: The judgements, in their order in time.
        limits: When a rater is flagged.
    """
    by_rater: dict[str, list[Opinion]] = defaultdict(list)
    for opinion in opinions:
        by_rater[opinion.rater].append(opinion)
    alone = {rater: _count(rater, said) for rater, said in by_rater.items()}
    alone = {rater: replace(one, flags=_flags(one, limits)) for rater, one in alone.items()}
    latest = {rater: _latest(said) for rater, said in by_rater.items() if rater}
    noisy = {rater for rater, one in alone.items() if _NOISY & set(one.flags)}
    shared = _shared({rater: preferences for rater, preferences in latest.items() if rater not in noisy})
    overall = _overall(latest, noisy)
    accounts: list[Account] = []
    for rater, one in alone.items():
        account = replace(one, agreement=overall.get(rater, Share()))
        others = [share for pair, share in shared.items() if rater in pair]
        accounts.append(replace(account, flags=(*one.flags, *_flags_beside(account, others, limits))))
    odd = {one.rater for one in accounts if "agreement" in one.flags or "opposite" in one.flags}
    conflicts = [
        conflict
        for pair, share in shared.items()
        if not pair & odd and (conflict := _conflict(pair, share, limits)) is not None
    ]
    return RaterReport(
        sorted(accounts, key=lambda account: (-account.num_judgements, account.rater)),
        sorted(conflicts, key=lambda conflict: (conflict.agreement.value, conflict.raters))[:_MOST_NAMED],
    )


def _count(rater: str, said: Sequence[Opinion]) -> Account:
    placed = [one.preferred == one.shown_left for one in said if one.shown_left and _is_clear(one)]
    seconds = [one.seconds for one in said if one.seconds is not None]
    return Account(
        rater,
        len(said),
        sum(one.preferred in ("tie", "both_bad") for one in said),
        sum(one.preferred == "skip" for one in said),
        Share(sum(placed), len(placed)),
        _repeats(said) if rater else Share(),
        _circles(_latest(said)) if rater else Share(),
        Share(),
        statistics.median(seconds) if seconds else None,
    )


def _flags(account: Account, limits: Limits) -> tuple[Flag, ...]:
    """What a rater's answers show without the others'."""
    if not account.rater:
        return ()
    found: list[Flag] = []
    num_clear = account.num_judgements - account.num_ties - account.num_skipped
    left = account.left
    if left.total >= limits.least and abs(left.value - _COIN) >= limits.least_lean:
        low, high = wilson_interval(left.count, left.total, limits.place_quantile)
        if not low <= _COIN <= high:
            found.append("place")
    if account.num_judgements >= limits.least:
        if num_clear == 0:
            found.append("undecided")
        if account.median_seconds is not None and account.median_seconds < limits.fastest:
            found.append("speed")
    if _is_by_chance(account.repeats, limits.fair_agreement, _COIN, limits.odds):
        found.append("repeats")
    straight = Share(account.circles.total - account.circles.count, account.circles.total)
    if _is_by_chance(straight, limits.fair_straight, _STRAIGHT_BY_CHANCE, limits.odds):
        found.append("circles")
    return tuple(found)


def _flags_beside(account: Account, others: Sequence[Share], limits: Limits) -> tuple[Flag, ...]:
    """What shows beside others. Of two raters neither is the odd one out, and who is like one other is not it."""
    compared = [share for share in others if share.total >= limits.least_shared]
    if len(compared) < 2 or any(share.interval[0] > _COIN for share in compared):
        return ()
    agreement = account.agreement
    if wilson_interval(agreement.count, agreement.total, limits.opposite_quantile)[1] < _COIN:
        return ("opposite",)
    return ("agreement",) if _is_by_chance(agreement, limits.fair_agreement, _COIN, limits.odds) else ()


def _conflict(pair: frozenset[str], share: Share, limits: Limits) -> Conflict | None:
    if share.total < limits.least_shared:
        return None
    one, other = sorted(pair)
    if wilson_interval(share.count, share.total, limits.opposite_quantile)[1] < _COIN:
        return Conflict((one, other), share, True)
    is_by_chance = _is_by_chance(share, limits.fair_agreement, _COIN, limits.odds)
    return Conflict((one, other), share, False) if is_by_chance else None


def _is_by_chance(share: Share, skill: float, chance: float, odds: float) -> bool:
    """Whether a share is no better than chance, and chance explains it much better than a fair rater does."""
    return share.interval[0] <= chance and chance_log_odds(
        share.count, share.total, skill, chance
    ) >= math.log(odds)


def _is_clear(opinion: Opinion) -> bool:
    return opinion.preferred in ("first", "second")


def _key(opinion: Opinion) -> Key:
    prompt = opinion.prompt if isinstance(opinion.prompt, str) else json.dumps(opinion.prompt, sort_keys=True)
    low, high = sorted((opinion.first, opinion.second))
    return prompt, low, high


def _preferred_text(opinion: Opinion) -> str:
    return opinion.first if opinion.preferred == "first" else opinion.second


def _latest(said: Iterable[Opinion]) -> dict[Key, str]:
    """The text that a rater preferred last, of each pair with a preference."""
    return {_key(one): _preferred_text(one) for one in said if _is_clear(one)}


def _repeats(said: Iterable[Opinion]) -> Share:
    """Each preference about a pair of texts beside the one before it, whichever way round they were shown."""
    before: dict[Key, str] = {}
    num_same, num_again = 0, 0
    for one in filter(_is_clear, said):
        key, text = _key(one), _preferred_text(one)
        if key in before:
            num_again += 1
            num_same += before[key] == text
        before[key] = text
    return Share(num_same, num_again)


def _circles(latest: dict[Key, str]) -> Share:
    """Intransitive triples among the triples of one prompt of which all three pairs have a preference.

    Chance makes a quarter of them circular.

    Reference:
        Kendall and Babington Smith (1940), "On the Method of Paired Comparisons": d, the number of circular triads.
    """
    beyond: dict[tuple[str, str], set[str]] = defaultdict(
        set
    )  # of a text, those later in order that it was beside
    for prompt, low, high in latest:
        beyond[prompt, low].add(high)
    num_circles, num_triples = 0, 0
    for prompt, low, middle in latest:
        for high in beyond[prompt, low] & beyond.get((prompt, middle), set()):
            num_triples += 1
            pairs = ((low, middle), (middle, high), (low, high))
            num_circles += len({latest[prompt, *pair] for pair in pairs}) == 3  # each was preferred once
    return Share(num_circles, num_triples)


def _by_pair(latest: dict[str, dict[Key, str]]) -> Iterable[dict[str, str]]:
    """Of each pair that two raters or more have a preference about: what each preferred."""
    said: dict[Key, dict[str, str]] = defaultdict(dict)
    for rater, preferences in latest.items():
        for key, text in preferences.items():
            said[key][rater] = text
    return (texts for texts in said.values() if len(texts) > 1)


def _shared(latest: dict[str, dict[Key, str]]) -> dict[frozenset[str], Share]:
    """How often each two raters agree about what both have a preference about."""
    counts: dict[frozenset[str], list[int]] = defaultdict(lambda: [0, 0])
    for texts in _by_pair(latest):
        for one, other in itertools.combinations(texts, 2):
            count = counts[frozenset((one, other))]
            count[0] += texts[one] == texts[other]
            count[1] += 1
    return {pair: Share(*count) for pair, count in counts.items()}


def _overall(latest: dict[str, dict[Key, str]], noisy: set[str]) -> dict[str, Share]:
    """How often each rater agrees with the others of a pair, who are averaged; with the noisy nobody is compared."""
    counts: dict[str, tuple[float, int]] = {}
    for texts in _by_pair(latest):
        for rater, text in texts.items():
            others = [said for other, said in texts.items() if other != rater and other not in noisy]
            if others:
                count, total = counts.get(rater, (0.0, 0))
                counts[rater] = count + others.count(text) / len(others), total + 1
    return {rater: Share(*count) for rater, count in counts.items()}
