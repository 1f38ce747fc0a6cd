"""Warnings about raters while they judge."""

from typing import TYPE_CHECKING

from klimb.feedback.rater_report import sentence
from klimb.feedback.raters import account_for, opinions_of
from klimb.io.progress import Say

if TYPE_CHECKING:
    from klimb.feedback.store.store import Store  # runs without people need no database

_LOOK_EVERY = 5  # answers from one check of the raters to the next


class RaterWatch:
    """Warns, once for each, of what looks wrong with a rater's answers.

    Args:
        say: Takes the line.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._told: set[tuple[str, str]] = set()
        self._num_seen = 0

    def check(self, store: "Store") -> None:
        """Check the raters of a store, where there are new answers since the last check."""
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
