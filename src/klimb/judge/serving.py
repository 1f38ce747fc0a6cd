"""The page on which people judge: served until Ctrl-C, or until nothing is left to judge."""

import contextlib
from collections.abc import Callable

from klimb.feedback.store import Store
from klimb.judge.config import JudgeConfig
from klimb.progress import Say

Serve = Callable[..., None]
"""Serves the page, as `klimb.feedback.server.serve` does."""


def serve_page(
    store: Store, config: JudgeConfig, say: Say, serve: Serve, until: Callable[[], bool] | None = None
) -> None:
    """Serve the page until Ctrl-C, or until what is given holds."""
    with contextlib.suppress(KeyboardInterrupt):
        serve(store, config.serve_options(), say=say, open_browser=config.browser, until=until)
