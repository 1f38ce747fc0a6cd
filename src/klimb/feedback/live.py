"""The comparison page while a run goes on: it is served beside the run, and waits with people for the next step."""

import threading
import time
import webbrowser

import uvicorn

from klimb.feedback.app import Notes, create_app
from klimb.feedback.server import listen, page_address, page_links, quiet_config
from klimb.feedback.serving import ServeOptions
from klimb.feedback.store import Store
from klimb.progress import Say

_FAREWELL = 5.0  # seconds for which the page tells people that it is over
FLAGS = "--people-"
"""What the options of a run for this page begin with."""

_WAITING = "The model is learning from what you said. The next pairs come by themselves."


class LivePage:
    """Serves the page in a thread of its own.

    Args:
        store: Where the pairs come in, and the judgements go.
        options: Where to listen, and who is let in.
        say: Is told the links.
        open_browser: Whether to show the page in this machine's browser.

    Raises:
        ConfigError: The address cannot be listened on, or the port is in use.
    """

    def __init__(self, store: Store, options: ServeOptions, say: Say, *, open_browser: bool = False) -> None:
        options = options.with_tokens()
        self.note, self._is_over = _WAITING, False
        self._listening = listen(options, FLAGS)
        app = create_app(
            store, options, Notes(rest=lambda: (self.note, "over" if self._is_over else "coming"))
        )
        self._server = uvicorn.Server(quiet_config(app))
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listening],), name="klimb-page", daemon=True
        )
        self._thread.start()
        for line in page_links(options):
            say(line)
        if open_browser:
            threading.Thread(target=webbrowser.open, args=(page_address(options),), daemon=True).start()

    def close(self, ending: str) -> None:
        """Tell whoever has the page open how it ended, and close it."""
        self.note, self._is_over = ending, True
        time.sleep(_FAREWELL)
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._listening.close()
