"""People as the reward, while a run goes on: they compare a step's completions on the page, and the run waits.

Axes: N completions, M pairs.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from klimb.feedback.rater_report import sentence
from klimb.feedback.raters import account_for, opinions_of
from klimb.feedback.records import Candidate, Choice
from klimb.feedback.serving import ServeOptions
from klimb.progress import Say, ignore
from klimb.reward.load import PEOPLE
from klimb.reward.reward import Batch

if TYPE_CHECKING:
    from klimb.feedback.live import LivePage
    from klimb.feedback.store import Store

_POLL = 0.3  # seconds between looks at what was said
_SHARES: dict[Choice, float] = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}
_EVEN = 0.5
_LOOK_EVERY = 5  # answers after which raters are looked at again


class WaitStoppedError(Exception):
    """The run was asked to stop while people were being waited for; nothing was learned from their step yet."""


@dataclass(frozen=True)
class People:
    """Who is asked, and where.

    Attributes:
        store: The file in which their judgements are.
        serve: Where the page is served.
        say: Is told the page's address, and that people are waited for.
        open_browser: Whether to show the page in this machine's browser.
    """

    store: Path
    serve: ServeOptions = field(default_factory=ServeOptions)
    say: Say = ignore
    open_browser: bool = False


class RaterWatch:
    """Warns, once for each, of what looks wrong with a rater's answers.

    Args:
        say: Takes the line.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._told: set[tuple[str, str]] = set()
        self._num_seen = 0

    def look(self, store: "Store") -> None:
        """Look at the raters of a store, where more was said since the last time."""
        num_said = store.count_judgements()
        if num_said < self._num_seen + _LOOK_EVERY:
            return
        self._num_seen = num_said
        report = account_for(opinions_of(store.judgements()))
        for account in report.suspects:
            for flag in account.flags:
                if (account.rater, flag) not in self._told:
                    self._told.add((account.rater, flag))
                    self._say(f"warning: {sentence(account, flag)}; the run continues")
        for conflict in report.conflicts:
            if conflict.raters not in self._told:
                self._told.add(conflict.raters)
                self._say(f"warning: {conflict.sentence}; the run continues")


class PeopleReward:
    """The share of its comparisons that a completion won.

    r_i = mean over its pairs of (1 where people preferred it, ½ where they said tie or both bad, 0 where the other)

    Each prompt's completions stand in a ring, and neighbours are compared: of G different ones G pairs, of two one. A
    pair that was skipped says nothing. Where nothing was said of a completion, or all of its prompt's are the same
    text, r_i = ½.

    The pairs and what is said of them are in a store, under their texts. So a run that is resumed, which draws the same
    completions, asks about no pair twice and gets the same rewards.

    Args:
        people: Who is asked, and where.
    """

    name = PEOPLE

    def __init__(self, people: People) -> None:
        self._people = people
        self._page: LivePage | None = None
        self._store: Store | None = None
        self._watch = RaterWatch(people.say)
        self.is_stopping: Callable[[], bool] = lambda: False

    def __call__(self, batch: Batch) -> list[float]:
        """Ask people about a step's completions, and wait for what they say.

        Raises:
            WaitStoppedError: The run is to stop. What was said so far is in the store.
            ConfigError: The page's address cannot be listened on.
        """
        store = self._open()
        groups = list(_groups(batch))
        numbers = store.ask(
            (batch.prompts[left[0]], _candidate(batch, left[0]), _candidate(batch, right[0]))
            for group in groups
            for left, right in ring(group)
        )
        said = self._wait(store, numbers, batch)
        rewards = [_EVEN] * len(batch.texts)
        answers = iter(said)
        for group in groups:
            for members, share in zip(group, _shares(group, answers), strict=True):
                for index in members:
                    rewards[index] = share
        batch.log.log_metric("people_asked", len(numbers))
        return rewards

    def check(self) -> None:
        """Try the page's address, before the run loads anything.

        Raises:
            ConfigError: It cannot be listened on.
        """
        from klimb.feedback.live import FLAGS
        from klimb.feedback.server import listen

        listen(self._people.serve, FLAGS).close()

    def finish(self, ending: str) -> None:
        """Tell people on the page how the run ended, and close it."""
        if self._page is not None:
            self._page.close(ending)
            self._page = None
        if self._store is not None:
            self._store.close()
            self._store = None

    def _open(self) -> "Store":
        # A database and a server, which no other run needs.
        from klimb.feedback.live import LivePage
        from klimb.feedback.store import Store

        if self._store is None:
            self._store = Store.open(self._people.store)
        if self._page is None:
            people = self._people
            self._page = LivePage(self._store, people.serve, people.say, open_browser=people.open_browser)
        return self._store

    def _wait(self, store: "Store", numbers: list[tuple[int, bool]], batch: Batch) -> list[list[Choice]]:
        has_said = False
        while True:
            said = store.choices(numbers)
            self._watch.look(store)
            num_open = sum(not self._is_answered(choices) for choices in said)
            if num_open == 0:
                return said
            if self.is_stopping():
                raise WaitStoppedError
            if not has_said:
                step = batch.state.global_step + 1
                self._people.say(
                    f"step {step}: waiting for people to judge {num_open} pair{'s' if num_open > 1 else ''}"
                )
                has_said = True
            time.sleep(_POLL)

    def _is_answered(self, choices: list[Choice]) -> bool:
        return "skip" in choices or len(choices) >= self._people.serve.per_pair


def ring(group: Sequence[list[int]]) -> list[tuple[list[int], list[int]]]:
    """Pair neighbours: of three different texts or more each stands in two pairs, of two in one."""
    if len(group) < 2:
        return []
    count = 1 if len(group) == 2 else len(group)
    return [(group[place], group[(place + 1) % len(group)]) for place in range(count)]


def _groups(batch: Batch) -> Iterator[list[list[int]]]:
    """The completions of one prompt after the other: for each different text the indices of those that have it."""
    for _, indices in itertools.groupby(range(len(batch.texts)), key=lambda index: batch.prompts[index]):
        by_text: dict[str, list[int]] = {}
        for index in indices:
            by_text.setdefault(batch.texts[index], []).append(index)
        yield list(by_text.values())


def _candidate(batch: Batch, index: int) -> Candidate:
    return Candidate(batch.texts[index], {"step": batch.state.global_step})


def _shares(group: Sequence[list[int]], answers: Iterator[list[Choice]]) -> list[float]:
    """The share of its comparisons that each different text of a prompt won."""
    places = {id(members): place for place, members in enumerate(group)}
    won: list[list[float]] = [[] for _ in group]
    for left, right in ring(group):
        opinions = [_SHARES[choice] for choice in next(answers) if choice in _SHARES]
        if opinions:
            share = sum(opinions) / len(opinions)
            won[places[id(left)]].append(share)
            won[places[id(right)]].append(1 - share)
    return [sum(values) / len(values) if values else _EVEN for values in won]
