"""People as judges of two models: pairs go to the store, and their judgements are read back from it.

Axes: B prompts, G comparisons a prompt.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from klimb.config.pairwise import PEOPLE, JudgeConfig
from klimb.config.serving import clean_name
from klimb.data.prompts import PromptRow
from klimb.feedback.records import Candidate, Judgement, as_json
from klimb.feedback.store.store import Store
from klimb.io.progress import Say
from klimb.io.show import Text
from klimb.pairwise.candidates import Drawn
from klimb.pairwise.serving import Serve, serve_page
from klimb.pairwise.tally import Opinions

Place = tuple[int, int]
"""A prompt's index, and that of a comparison of it."""


@dataclass(frozen=True)
class _Asked:
    """The comparisons that people are asked about; those of the same text twice are not among them.

    Attributes:
        places: Of the comparisons.
        pairs: The comparisons, A's completion first.
        place_of: Place and model of each completion, by what identifies it.
    """

    places: list[Place] = field(default_factory=list)
    pairs: list[tuple[Text, Candidate, Candidate]] = field(default_factory=list)
    place_of: dict[str, tuple[Place, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Said:
    """What a rater said of a comparison: a, b, tie, both_bad or skip."""

    rater: str
    preferred: str


def ask_people(
    store: Store,
    rows: Sequence[PromptRow],
    drawn: tuple[Drawn, Drawn],
    config: JudgeConfig,
    say: Say,
    serve: Serve,
) -> Opinions:
    """Ask people which completions of two models they prefer, without saying whose they are.

    Returns when every pair is judged, or on Ctrl-C; what was judged before in the same store counts too. Pairs of
    the same text are ties, as far as the judging has come: pairs are asked about in the order of the prompts.

    Args:
        store: Where pairs and judgements are kept.
        rows: B prompts.
        drawn: Completions of A and of B, (B, G) each.
        config: How the page is served, and how many people are asked about a pair.
        say: Takes lines of progress.
        serve: Serves the page.
    """
    asked = _ask(rows, drawn)
    num_new = store.add_pairs(asked.pairs)
    _ask_these_first(store, asked)
    num_same = sum(map(len, drawn[0].candidates)) - len(asked.pairs)
    same = f"; {num_same:,} more are the same text twice, and ties" if num_same else ""
    say(f"{len(asked.pairs):,} pairs to judge, {num_new:,} of them new in {store.where}{same}")

    def is_done() -> bool:
        progress = store.progress(config.rater or "")  # read first, since it costs less than all judgements
        may_be = progress.num_done + progress.num_own >= len(asked.places)
        return may_be and _is_done(_by_place(store.judgements(), asked)[0], asked, config)

    if not is_done():
        say(
            "The page closes once every pair is judged. Ctrl-C ends it sooner; the same command continues from there."
        )
        serve_page(store, config, say, serve, until=is_done)
    said, num_others = _by_place(store.judgements(), asked)
    if num_others:
        say(f"{num_others:,} judgements in {store.where} belong to other pairs and are not counted")
    return _opinions(said, asked, (len(rows), len(drawn[0].candidates[0])))


def _ask(rows: Sequence[PromptRow], drawn: tuple[Drawn, Drawn]) -> _Asked:
    asked = _Asked()
    for prompt, row in enumerate(rows):
        sides = zip(*(side.candidates[prompt] for side in drawn), strict=True)
        for comparison, (a, b) in enumerate(sides):
            if a.text == b.text:
                continue
            place = prompt, comparison
            asked.places.append(place)
            asked.pairs.append((row.prompt, a, b))
            asked.place_of[_key(row.prompt, a)] = place, "a"
            asked.place_of[_key(row.prompt, b)] = place, "b"
    return asked


def _key(prompt: Text, candidate: Candidate) -> str:
    return as_json([prompt, candidate.text, candidate.source])


def _ask_these_first(store: Store, asked: _Asked) -> None:
    """Put these pairs before others that the store may have."""
    ours = {(as_json(prompt), frozenset((a.text, b.text))) for prompt, a, b in asked.pairs}
    questions = store.open_questions()
    found = [q.pair_id for q in questions if (as_json(q.prompt), frozenset((q.first, q.second))) in ours]
    if len(found) < len(questions):
        store.set_priorities(dict.fromkeys(found, 1.0))


def _by_place(judgements: Sequence[Judgement], asked: _Asked) -> tuple[dict[Place, list[_Said]], int]:
    """The judgements of each comparison, and how many judgements are of other pairs."""
    found: dict[Place, list[_Said]] = defaultdict(list)
    num_others = 0
    for judgement in judgements:
        first, second = (
            asked.place_of.get(_key(judgement.prompt, side)) for side in (judgement.first, judgement.second)
        )
        if first is None or second is None or first[0] != second[0]:
            num_others += 1
            continue
        models = {"first": first[1], "second": second[1]}
        preferred = models.get(judgement.preferred, judgement.preferred)
        found[first[0]].append(_Said(judgement.rater, preferred))
    return dict(found), num_others


def _is_done(said: dict[Place, list[_Said]], asked: _Asked, config: JudgeConfig) -> bool:
    """Whether each pair has its judgements, or the one rater there is has nothing left."""
    rater = None if config.rater is None else clean_name(config.rater)
    return all(
        sum(s.preferred != "skip" for s in said.get(place, ())) >= config.per_pair
        or (rater is not None and any(s.rater == rater for s in said.get(place, ())))
        for place in asked.places
    )


def _opinions(said: dict[Place, list[_Said]], asked: _Asked, shape: tuple[int, int]) -> Opinions:
    shares = {name: np.zeros(shape) for name in ("a", "b", "both_bad", "tie")}
    for place, all_said in said.items():
        opinions = [s.preferred for s in all_said if s.preferred != "skip"]
        for preferred in set(opinions):
            shares[preferred][place] = opinions.count(preferred) / len(opinions)
    has_opinion = np.sum(list(shares.values()), axis=0) > 0
    num_skipped = sum(not has_opinion[place] for place in said)

    num_reached = shape[0]
    if not all(place in said for place in asked.places):
        num_reached = max((prompt + 1 for prompt, _ in said), default=0)
    is_same = np.ones(shape, dtype=np.bool_)
    for place in asked.places:
        is_same[place] = False
    has_opinion[:num_reached] |= is_same[:num_reached]
    return Opinions(PEOPLE, shares["a"], shares["b"], shares["both_bad"], has_opinion, num_skipped)
