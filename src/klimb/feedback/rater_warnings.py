"""Warnings about raters while they judge."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from klimb.errors import StoreError
from klimb.feedback.rater_report import sentence
from klimb.feedback.raters import account_for, opinions_of
from klimb.io.progress import Say

if TYPE_CHECKING:
    from klimb.feedback.store.store import Store  # runs without people need no database

_LOOK_EVERY = 5  # answers from one check of the raters to the next
_POLL = 1.0  # seconds from one look for new answers to the next


class RaterWatch:
    """Warns, once for each, of what looks wrong with a rater's answers.

    Args:
        say: Takes the line.
        goes_on: What continues all the same.
    """

    def __init__(self, say: Say, goes_on: str = "the run continues") -> None:
        self._say, self._goes_on = say, goes_on
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
                    self._say(f"warning: {sentence(account, flag)}; {self._goes_on}")
        for conflict in report.conflicts:
            if conflict.raters not in self._told:
                self._told.add(conflict.raters)
                self._say(f"warning: {conflict.sentence}; {self._goes_on}")


@contextlib.contextmanager
def watching_raters(store: "Store", say: Say) -> Iterator[None]:
    """Warn of raters, in a thread of its own, while a page is served.

    Args:
        store: Where their judgements go.
        say: Takes the lines.
    """
    watch, has_ended = RaterWatch(say, "the page stays open"), threading.Event()

    def go_on() -> None:
        while not has_ended.wait(_POLL):
            with contextlib.suppress(StoreError):  # the page meets it too, and tells the rater
                watch.check(store)

    thread = threading.Thread(target=go_on, name="klimb-raters", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
