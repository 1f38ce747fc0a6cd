"""`klimb label`: completions are sampled in pairs, and people say on a page which they prefer."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from klimb.config.pairwise import LabelConfig
from klimb.errors import ConfigError, DataError
from klimb.feedback.console import show_store
from klimb.feedback.server.app import Notes
from klimb.feedback.server.serve import serve as serve_in_browser
from klimb.feedback.store.store import Store
from klimb.io.progress import Say, tell
from klimb.pairwise.serving import Serve, claimed_to_label, serve_page

if TYPE_CHECKING:
    from klimb.pairwise.drawing import PairDrawing

_STORE = Path("feedback.db")


def label(config: LabelConfig, say: Say = tell, serve: Serve | None = None) -> str:
    """Sample pairs, where a model is named, and serve the page until Ctrl-C.

    The page opens when the first pairs are drawn. The same command draws the same pairs, those that are missing: what
    was judged stays judged.

    Args:
        config: The options.
        say: Takes lines of progress.
        serve: Serves the page; in the browser where None.

    Returns:
        Where the store is.

    Raises:
        KlimbError: Something is wrong with an option, a file, a model or the store.
    """
    if not config.model:
        where = config.store or _STORE
        with claimed_to_label(where), Store.open(where, must_exist=True) as store:
            _serve(store, config, say, serve or serve_in_browser)
            return store.where

    # What samples loads PyTorch, which takes seconds and is not needed to serve.
    from klimb.data.prompts import read_prompts
    from klimb.pairwise.candidates import find_models
    from klimb.pairwise.drawing import PairDrawing

    if config.prompts is None:
        raise ConfigError("prompts: expected a file of prompts that the models are to answer")
    rows = read_prompts(config.prompts, config.prompt_column, config.system_prompt)
    models = find_models(config.model)
    beside = models[0].run or Path()
    where = config.store or beside / _STORE
    with claimed_to_label(where), Store.open(where) as store:
        say(
            f"Sampling pairs, {config.num_pairs_per_prompt} for each of {len(rows):,} prompts, from "
            f"{' and '.join(config.model)}, temperature {config.temperature:g}{config.describe_decoding()}, up to "
            f"{config.max_new_tokens} tokens each …"
        )
        with PairDrawing(store, models, rows, config, say) as drawing:
            drawing.wait_for_pairs()
            _serve(store, config, say, serve or serve_in_browser, drawing)
            drawing.raise_error()
        return store.where


def _serve(
    store: Store, config: LabelConfig, say: Say, serve: Serve, drawing: "PairDrawing | None" = None
) -> None:
    progress = store.progress(config.rater or "", per_pair=config.per_pair)
    if progress.num_pairs == 0:
        hint = (
            "raise --temperature"
            if config.model
            else (
                f"sample some: --model … --prompts …, or bring some: klimb feedback import FILE --store {store.where}"
            )
        )
        raise DataError(f"{store.where}: has no pairs to judge; {hint}")
    if drawing is None:
        serve_page(store, config, say, serve)
    else:
        _serve_while_drawing(store, config, say, serve, drawing)
    show_store(store)
    if store.raters():
        base = config.model[0] if config.model else "…"
        words = f' --criterion "{config.criterion}"' if config.criterion else ""
        say(
            f"Learn from it: klimb reward train --feedback {store.where} --base {base}{words} --out learned/reward"
        )


def _serve_while_drawing(
    store: Store, config: LabelConfig, say: Say, serve: Serve, drawing: "PairDrawing"
) -> None:
    """Serve the page while pairs are drawn, and a reward is learned from what people say."""
    notes = Notes(rest=drawing.rest, drawn=drawing.words)
    if config.learn_along:
        from klimb.pairwise.candidates import find_models
        from klimb.reward.learn.along import AlongsideReward

        base = find_models(config.model)[0].source
        with AlongsideReward(store, base, config.criterion, drawing.turn) as along:
            serve_page(store, config, say, serve, notes=replace(notes, learned=lambda: along.words))
            drawing.stop()
        if along.words:
            say(along.words)
    else:
        serve_page(store, config, say, serve, notes=notes)
        drawing.stop()
