"""People as the reward of a live run: they compare a step's completions on the page, and the run waits.

Axes: N completions, K members of an ensemble, M pairs.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from klimb.config.serving import ServeOptions
from klimb.core.preferences import preference_disagreement
from klimb.feedback.rater_warnings import RaterWatch
from klimb.feedback.records import Candidate, Choice
from klimb.io.progress import Say, ignore
from klimb.reward.load import PEOPLE
from klimb.reward.pairing import Pair, all_pairs, groups_of, most_unsure, ring, shares_won
from klimb.reward.record import JudgedPair, JudgementRecord
from klimb.reward.reward import Batch

if TYPE_CHECKING:
    from klimb.feedback.server.live import LivePage
    from klimb.feedback.store.store import Store

_POLL = 0.3  # seconds from one check for judgements to the next
_EVEN = 0.5


class WaitStoppedError(Exception):
    """The run was asked to stop while people were being waited for; nothing was learned from their step yet."""


@dataclass(frozen=True)
class People:
    """Who is asked, and where.

    Attributes:
        store: The file in which their judgements are; beside it, as `.jsonl`, stands what each step learned from.
        serve: Where the page is served.
        say: Receives the page's address, and a line when the run waits for people.
        open_browser: Whether to show the page in this machine's browser.
        num_pairs: Pairs that they are asked about in a step; None: each completion with its neighbours.
    """

    store: Path
    serve: ServeOptions = field(default_factory=ServeOptions)
    say: Say = ignore
    open_browser: bool = False
    num_pairs: int | None = None


class PeopleReward:
    """The share of its comparisons that a completion won.

    r_i = mean over its pairs of (1 where people preferred it, ½ where they said tie or both bad, 0 where the other)

    Each prompt's completions stand in a ring, and neighbours are compared: of G different ones G pairs, of two one. A
    pair that was skipped says nothing. Where a completion has no judgement, or all of its prompt's are the same
    text, r_i = ½.

    With `num_pairs` people are asked about so many pairs of a step alone, those on which the members of a learned
    ensemble disagree most. Then ½ is taken off r_i, so that a judgement moves the learned reward up or down, and a
    completion without a judgement has no r_i: it takes the learned reward alone.

    What a step learns from is recorded before it is taken. So a run that is resumed, which draws the same completions,
    asks about no pair twice and gets the same rewards.

    Attributes:
        is_stopping: Says whether to stop waiting.
        member_scores: What each member of the ensemble gives, (N, K), NaN where a completion cannot be read; needed
            with `num_pairs`.

    Args:
        people: Who is asked, and where.
    """

    name = PEOPLE

    def __init__(self, people: People) -> None:
        self._people = people
        self._page: LivePage | None = None
        self._watch = RaterWatch(people.say)
        self._record: JudgementRecord | None = None
        self.is_stopping: Callable[[], bool] = lambda: False
        self.member_scores: Callable[[Batch], Float[np.ndarray, "N K"]] | None = None

    @property
    def record(self) -> JudgementRecord:
        """What the steps until now have learned from.

        Raises:
            RunFolderError: Its file is not as a run writes it.
        """
        if self._record is None:
            self._record = JudgementRecord(self._people.store.with_suffix(".jsonl"))
        return self._record

    def __call__(self, batch: Batch) -> list[float | None]:
        """Ask people about a step's completions, and wait for what they say.

        Raises:
            WaitStoppedError: The run is to stop. The judgements so far are in the store.
            ConfigError: The page's address cannot be listened on.
        """
        pairs = self._choose(batch)
        asked = [_judged_pair(batch, pair) for pair in pairs]
        step = batch.state.global_step
        page = self._open(step)
        said = self.record.find(step, asked)
        if said is None:
            said = self._ask(page, step, asked)
        shares = shares_won(pairs, said, len(batch.texts))
        batch.log.log_metric("people_asked", len(pairs))
        if self._people.num_pairs is None:
            return [_EVEN if share is None else share for share in shares]
        return [None if share is None else share - _EVEN for share in shares]

    def check(self) -> None:
        """Try the page's address, before the run loads anything.

        Raises:
            ConfigError: It cannot be listened on.
        """
        from klimb.feedback.server.live import FLAGS
        from klimb.feedback.server.serve import listen

        listen(self._people.serve, FLAGS).close()

    def finish(self, ending: str, *, has_finished: bool) -> None:
        """Tell people on the page how the run ended, and close it.

        Args:
            ending: What they are told.
            has_finished: Whether nothing comes any more; else an open page waits for the run to be resumed.
        """
        if self._page is not None:
            self._page.close(ending, is_over=has_finished)
            self._page = None

    def _choose(self, batch: Batch) -> list[Pair]:
        """The pairs that people are asked about: a function of the completions, and of the learned reward."""
        groups = list(groups_of(batch))
        count = self._people.num_pairs
        if count is None or self.member_scores is None:
            return [pair for group in groups for pair in ring(group)]
        scores = self.member_scores(batch)
        can_be_read = [bool(np.isfinite(row).all()) for row in scores]
        pairs = [
            pair
            for group in groups
            for pair in all_pairs(group)
            if can_be_read[pair[0][0]] and can_be_read[pair[1][0]]
        ]
        if not pairs:
            return []
        margins = np.stack([scores[left[0]] - scores[right[0]] for left, right in pairs], axis=1)
        return most_unsure(pairs, np.asarray(preference_disagreement(margins)), count)

    def _open(self, step: int) -> "LivePage":
        # A database and a server, which no other run needs.
        from klimb.feedback.server.live import LivePage
        from klimb.feedback.store.store import Store

        if self._page is None:
            people = self._people
            store = Store.open(people.store)
            self._page = LivePage(store, people.serve, people.say, open_browser=people.open_browser)
            num_changed = 0
            for number, pairs in self.record.before(step + 1):
                numbers = _numbers(store, number, pairs)
                self._page.settled.update(pair_id for pair_id, _ in numbers)
                stand = store.choices(numbers)
                num_changed += sum(
                    bool(Counter(pair.said) - Counter(choices))
                    for pair, choices in zip(pairs, stand, strict=True)
                )
            if num_changed:
                people.say(
                    f"warning: of {num_changed} pair{'s' if num_changed > 1 else ''} that the run has learned from, a "
                    "judgement was taken back or changed since; the run keeps to what it learned from "
                    f"({people.store.with_suffix('.jsonl').name})"
                )
        return self._page

    def _ask(self, page: "LivePage", step: int, asked: list[JudgedPair]) -> list[list[Choice]]:
        """Wait for what people say of the pairs of a step, and write it down."""
        numbers = _numbers(page.store, step, asked)
        has_said = False
        while True:
            said, num_open = page.settle(numbers, self._is_answered)
            self._watch.check(page.store)
            if num_open == 0:
                break
            if self.is_stopping():
                raise WaitStoppedError
            if not has_said:
                self._people.say(
                    f"step {step + 1}: waiting for people to judge {num_open} pair{'s' if num_open > 1 else ''}"
                )
                has_said = True
            time.sleep(_POLL)
        judged = [replace(pair, said=tuple(choices)) for pair, choices in zip(asked, said, strict=True)]
        self.record.add(step, judged)
        return said

    def _is_answered(self, choices: list[Choice]) -> bool:
        return "skip" in choices or len(choices) >= self._people.serve.per_pair


def _judged_pair(batch: Batch, pair: Pair) -> JudgedPair:
    left, right = pair
    return JudgedPair(batch.prompts[left[0]], batch.texts[left[0]], batch.texts[right[0]])


def _numbers(store: "Store", step: int, pairs: list[JudgedPair]) -> list[tuple[int, bool]]:
    """The store's number of each pair of a step, and whether it has its completions the other way round."""
    source = {"step": step}
    return store.ask(
        (pair.prompt, Candidate(pair.first, source), Candidate(pair.second, source)) for pair in pairs
    )
