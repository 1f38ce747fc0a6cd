"""The comparison page of a live run: served beside it, it waits with people for the next step."""

import threading
import time
import webbrowser
from collections.abc import Callable, Sequence

import uvicorn

from klimb.config.serving import ServeOptions
from klimb.feedback.records import Choice
from klimb.feedback.server.app import Notes, Stage, create_app
from klimb.feedback.server.serve import listen, page_address, page_links, quiet_config
from klimb.feedback.store.store import Store
from klimb.io.progress import Say

_FAREWELL = 5.0  # seconds for which the page tells people that it is over
FLAGS = "--people-"
"""What the options of a run for this page begin with."""

_WAITING = "The model is learning from what you said. The next pairs come by themselves."
_LEARNED = "The model has learned from your last answer already, so it stays as it is"


class LivePage:
    """Serves the page in a thread of its own.

    Attributes:
        store: Where the pairs come in, and the judgements go; closed with the page.
        settled: Numbers of the pairs that the run has learned from; their judgements cannot be taken back.

    Args:
        store: As above.
        options: Where to listen, and who is let in.
        say: Receives the links.
        open_browser: Whether to show the page in this machine's browser.

    Raises:
        ConfigError: The address cannot be listened on, or the port is in use.
    """

    def __init__(self, store: Store, options: ServeOptions, say: Say, *, open_browser: bool = False) -> None:
        options = options.with_tokens()
        self.settled: set[int] = set()
        self.store, self._turn = store, threading.Lock()
        self._rest: tuple[str, Stage] = (_WAITING, "coming")
        self._listening = listen(options, FLAGS)
        app = create_app(store, options, Notes(rest=lambda: self._rest, undo=self._undo))
        self._server = uvicorn.Server(quiet_config(app))
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listening],), name="klimb-page", daemon=True
        )
        self._thread.start()
        for line in page_links(options):
            say(line)
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(page_address(options),), daemon=True).start()

    def settle(
        self, numbers: Sequence[tuple[int, bool]], is_answered: Callable[[list[Choice]], bool]
    ) -> tuple[list[list[Choice]], int]:
        """Return the judgements of pairs, and how many of the pairs are not answered yet.

        Once all are, their judgements cannot be taken back any more.

        Args:
            numbers: What `Store.ask` returned of the pairs.
            is_answered: Whether a pair has enough judgements.
        """
        with self._turn:
            said = self.store.choices(numbers)
            num_open = sum(not is_answered(choices) for choices in said)
            if num_open == 0:
                self.settled.update(number for number, _ in numbers)
        return said, num_open

    def close(self, ending: str, *, is_over: bool) -> None:
        """Tell whoever has the page open how it ended, and close page and store.

        Args:
            ending: What they are told.
            is_over: Whether nothing comes any more; else their pages wait for the run to be resumed.
        """
        self._rest = (ending, "over" if is_over else "paused")
        time.sleep(_FAREWELL)
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._listening.close()
        self.store.close()

    def _undo(self, rater: str) -> tuple[bool, str]:
        with self._turn:
            if self.store.newest_pair(rater) in self.settled:
                return False, _LEARNED
            return self.store.undo(rater) is not None, ""
