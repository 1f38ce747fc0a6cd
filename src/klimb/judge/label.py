"""`klimb label`: completions are sampled in pairs, and people say on a page which they prefer."""

from pathlib import Path

from klimb.errors import ConfigError, DataError
from klimb.feedback.console import show_store
from klimb.feedback.server import serve as serve_in_browser
from klimb.feedback.store import Store
from klimb.judge.config import LabelConfig
from klimb.judge.serving import Serve, claimed_to_label, serve_page
from klimb.progress import Say, tell

_STORE = Path("feedback.db")


def label(config: LabelConfig, say: Say = tell, serve: Serve | None = None) -> str:
    """Sample pairs, where a model is named, and serve the page until Ctrl-C.

    The same command draws the same pairs, of which the store keeps one each: what was judged stays judged.

    Args:
        config: The options.
        say: Tells of what goes on.
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
    from klimb.judge.candidates import draw_to_label, find_models
    from klimb.judge.console import watched
    from klimb.train.prompts import read_prompts

    if config.prompts is None:
        raise ConfigError("prompts: expected a file of prompts that the models are to answer")
    rows = read_prompts(config.prompts, config.prompt_column)
    models = find_models(config.model)
    beside = models[0].run or Path()
    where = config.store or beside / _STORE
    with claimed_to_label(where), Store.open(where) as store:
        say(
            f"Sampling pairs, {config.num_pairs_per_prompt} for each of {len(rows):,} prompts, from "
            f"{' and '.join(config.model)}, temperature {config.temperature:g}, up to "
            f"{config.max_new_tokens} tokens each …"
        )
        pairs, num_same = draw_to_label(models, rows, config, watched, say)
        num_new = store.add_pairs(pairs)
        dropped = f"; {num_same:,} were dropped: the same text twice" if num_same else ""
        say(f"{len(pairs):,} pairs, {num_new:,} of them new{dropped}")
        _serve(store, config, say, serve or serve_in_browser)
        return store.where


def _serve(store: Store, config: LabelConfig, say: Say, serve: Serve) -> None:
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
    if config.model and config.learn_along:
        from klimb.judge.candidates import find_models
        from klimb.reward.along import AlongsideReward

        base = find_models(config.model)[0].source
        with AlongsideReward(store, base, config.criterion) as along:
            serve_page(store, config, say, serve, learned=lambda: along.words)
        if along.words:
            say(along.words)
    else:
        serve_page(store, config, say, serve)
    show_store(store)
    if store.raters():
        base = config.model[0] if config.model else "…"
        words = f' --criterion "{config.criterion}"' if config.criterion else ""
        say(
            f"Learn from it: klimb reward train --feedback {store.where} --base {base}{words} --out learned/reward"
        )
