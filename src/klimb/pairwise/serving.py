"""The page on which people judge: served until Ctrl-C, or until nothing is left to judge."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from klimb.config.pairwise import JudgeConfig
from klimb.feedback.rater_warnings import watching_raters
from klimb.feedback.server.app import Notes
from klimb.feedback.store.claim import claimed
from klimb.feedback.store.store import Store
from klimb.io.progress import Say

Serve = Callable[..., None]
"""Serves the page, as `klimb.feedback.server.serve.serve` does."""


def serve_page(
    store: Store,
    config: JudgeConfig,
    say: Say,
    serve: Serve,
    until: Callable[[], bool] | None = None,
    notes: Notes | None = None,
) -> None:
    """Serve the page until Ctrl-C, or until what is given holds.

    Args:
        store: Where pairs and judgements are kept.
        config: How the page is served, and what raters are to look for.
        say: Receives the links.
        serve: Serves the page.
        until: Says whether all is judged.
        notes: Text that the page shows beside the pairs; the guidelines are put into it.

    Raises:
        ConfigError: The guidelines cannot be read, or the page cannot be served.
    """
    notes = replace(notes or Notes(), guidelines=config.read_guidelines())
    with contextlib.suppress(KeyboardInterrupt), watching_raters(store, say):
        serve(store, config.serve_options(), say=say, open_browser=config.browser, until=until, notes=notes)


def claimed_to_label(store: str | Path) -> AbstractContextManager[None]:
    """Share a store with other pages, and not with a live run: it would wait for the pairs of this page, too.

    Raises:
        StoreError: A live run uses the store.
    """
    advice = "judge on the run's own page, wait until it ends, or choose another --store"
    return claimed(store, "a page for labelling (klimb label or compare)", advice=advice, is_shared=True)
