"""Closing the comparison page once all is judged."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from klimb.errors import StoreError

_POLL = 1.0  # seconds between looks at whether all is judged
_GRACE = 3.0  # seconds for which it must stay so before the page is closed: the last judgement may be undone


@contextmanager
def closing_when(is_done: Callable[[], bool] | None, close: Callable[[], None]) -> Iterator[None]:
    """Within, look now and then whether all is judged, and close what is served once it has been so for a while."""
    if is_done is None:
        yield
        return
    has_ended = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(is_done, close, has_ended), name="klimb-watcher", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        has_ended.set()
        watcher.join()


def _watch(is_done: Callable[[], bool], close: Callable[[], None], has_ended: threading.Event) -> None:
    done_since: float | None = None
    while not has_ended.wait(_POLL):
        try:
            done = is_done()
        except StoreError:  # the server meets it too, and tells the rater
            continue
        now = time.monotonic()
        done_since = (done_since or now) if done else None
        if done_since is not None and now - done_since >= _GRACE:
            close()
            return
