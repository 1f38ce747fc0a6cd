"""The page on which people judge: served until Ctrl-C, or until nothing is left to judge."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable

from klimb.errors import StoreError
from klimb.feedback.store import Store
from klimb.judge.config import JudgeConfig

Say = Callable[[str], None]
"""Tells a person of what goes on."""

Serve = Callable[..., None]
"""Serves the page until Ctrl-C, as `klimb.feedback.server.serve` does."""

_POLL = 1.0  # seconds between looks at whether all is judged
_GRACE = 3.0  # seconds for which it must stay so before the page is closed: the last judgement may be undone


def serve_page(store: Store, config: JudgeConfig, say: Say, serve: Serve) -> None:
    """Serve the page until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        serve(store, config.serve_options(), say=say, open_browser=config.browser)


def serve_until(
    is_done: Callable[[], bool], store: Store, config: JudgeConfig, say: Say, serve: Serve
) -> None:
    """Serve the page until all is judged, or until Ctrl-C. To be called in the main thread."""
    watcher = _Watcher(is_done)
    watcher.start()
    try:
        serve_page(store, config, say, serve)
    finally:
        watcher.end()


class _Watcher(threading.Thread):
    """Ends what the main thread serves, as Ctrl-C would, once all is judged."""

    def __init__(self, is_done: Callable[[], bool]) -> None:
        super().__init__(name="klimb-watcher", daemon=True)
        self._is_done = is_done
        self._lock = threading.Lock()
        self._has_ended = threading.Event()

    def run(self) -> None:
        """Look now and then."""
        done_since: float | None = None
        while not self._has_ended.wait(_POLL):
            try:
                is_done = self._is_done()
            except StoreError:  # the server meets it too, and tells the rater
                continue
            now = time.monotonic()
            done_since = (done_since or now) if is_done else None
            if done_since is not None and now - done_since >= _GRACE:
                self._interrupt()
                return

    def end(self) -> None:
        """Watch no longer."""
        with self._lock:
            self._has_ended.set()
        self.join()

    def _interrupt(self) -> None:
        main = threading.main_thread().ident
        with self._lock:
            if main is not None and not self._has_ended.is_set():
                signal.pthread_kill(main, signal.SIGINT)
