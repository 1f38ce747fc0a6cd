"""`klimb reward train`: fits a reward model to judgements."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from klimb.config.reward import RewardConfig
from klimb.errors import DataError, RunFolderError
from klimb.feedback.formats import Feedback
from klimb.feedback.pairs import Pairs, make_pairs, split_by_prompt
from klimb.feedback.rater_report import RaterReport
from klimb.feedback.raters import account_for, leave_out, opinions_in
from klimb.feedback.sources import NEEDED, read_sources
from klimb.io.atomic import whole_folder
from klimb.io.show import printable, redact, redacted
from klimb.reward.learn.card import draw_card
from klimb.reward.learn.features import read_features
from klimb.reward.learn.methods import learn_few, learn_head, learn_weights
from klimb.reward.learn.report import draw_report
from klimb.reward.learn.results import RewardResult
from klimb.reward.reading import Reader, check_deployed, check_saved_tokenizer
from klimb.reward.scorer import Scorer

_LEAST_UNITS = 2  # prompts (or texts), without which nothing can be tested
_HELD_OUT = 0.2
FEW = 500
"""Pairs up to which all are learned from, by evidence, and tested in parts."""


def train_reward(config: RewardConfig, say: Callable[[str], None] = lambda _: None) -> RewardResult:
    """Learn a reward from what people said, test it on prompts held out, and write it.

    s(x, y) = w · h(x, y), h the base's last hidden state at the last token (or what its own head would
    see), w the weights that make what people said likeliest under Bradley–Terry with ties; with methods
    lora and whole h then moves too (`klimb.reward.learn.tuning`).

    Args:
        config: What to learn from, and how.
        say: Takes lines of progress.

    Raises:
        DataError: Nothing can be learned from the files.
        DivergedError: Weights have gone where scores are no longer finite.
        RewardError: The saved reward would give other scores than those that were evaluated.
        RunFolderError: The folder exists already.
        ModelNotFoundError: No such base.
    """
    if config.out.exists():
        raise RunFolderError(f"{config.out}: exists already; choose another folder, or remove it")
    feedback, raters = _read(config, say)
    sides, facts = _prepare(feedback, config)
    for fact in facts.values():
        say(fact)

    say(f"Loading {config.base} …")
    question = config.used_question(is_few=sides[0] is sides[1])
    scorer = Scorer.from_base(config.base, num_layers=config.num_layers, question=question)
    encoded, sides, facts = _encode(scorer, feedback, config, (sides, facts), say)
    if scorer.notes:
        facts["loading"] = "; ".join(scorer.notes)
        say(facts["loading"])
    if scorer.moment is not None:
        facts["clock"] = (
            f"the base's chat template writes the time: {scorer.moment} in this reward, now and later"
        )
        say(facts["clock"])
    scorer.settle_padding(text for side in encoded for text in side)
    check_saved_tokenizer(scorer, sides[1], encoded[1])
    start = time.perf_counter()
    features = read_features(scorer, encoded, say)
    facts["features"] = f"{features[0].shape[1]} features a text, {time.perf_counter() - start:.0f} s"
    is_crossed = sides[0] is sides[1]
    if is_crossed:
        learned = learn_few(scorer, features[0], sides[0], config, say)
    elif config.method == "head":
        learned = learn_head(scorer, features, sides, config, say)
    else:
        learned = learn_weights(scorer, encoded, features, sides, config, say)
    facts["learned"] = learned.fact
    unit = learned.unit if config.standardise and learned.unit > 0 else 1.0
    if unit != 1:
        scorer.divide(unit)
        between = "answers to one prompt" if any(sides[1].prompts) else "texts"
        facts["unit"] = f"scores count standard deviations between {between}, {unit:.3g} nats each"
        say(facts["unit"])
    result = RewardResult(
        config.out,
        config.out / "report.html",
        learned.held_out,
        learned.train,
        learned.curve,
        learned.head.ridge,
        learned.tie,
        any(sides[0].prompts),
        facts,
        learned.tuning,
        learned.before,
        unit,
        is_crossed,
        config.criterion is not None,
        raters,
    )
    _write(
        result, config, scorer, lambda folder: check_deployed(scorer, folder, sides[1], learned.scores / unit)
    )
    return result


def _read(config: RewardConfig, say: Callable[[str], None]) -> tuple[Feedback, RaterReport]:
    """Read the judgements, leave out unwanted raters, and assess each rater's answers."""
    feedback = read_sources(config.feedback)
    say(feedback.summary)
    for place, reason in feedback.refused[:5]:
        say(printable(f"  refused {place}: {reason}"))
    if config.without_raters:
        feedback, num_left_out = leave_out(feedback, config.without_raters)
        say(printable(f"{num_left_out:,} judgements left out, of {', '.join(config.without_raters)}"))
    return feedback, account_for(opinions_in(feedback.comparisons))


def _encode(
    scorer: Scorer,
    feedback: Feedback,
    config: RewardConfig,
    prepared: tuple[list[Pairs], dict[str, str]],
    say: Callable[[str], None],
) -> tuple[list[list[list[int]]], list[Pairs], dict[str, str]]:
    """Encode the texts of either side; where some cannot be read, the pairs are made anew without them."""
    if config.truncate is not None:
        scorer.cut_longer(config.truncate, config.max_length)
    elif config.max_length is not None:
        scorer.longest = min(config.max_length, scorer.longest or config.max_length)
    reader = Reader(scorer)
    readable, num_refused = reader.readable(feedback, say)
    sides, facts = prepared
    if num_refused:
        sides, facts = _prepare(readable, config)
        facts["refused"] = f"{num_refused:,} judgements refused, whose texts cannot be read"
        for fact in facts.values():
            say(fact)
    return [reader.encode_pairs(side) for side in sides], sides, facts


def _prepare(feedback: Feedback, config: RewardConfig) -> tuple[list[Pairs], dict[str, str]]:
    """Split the pairs in those to learn from and those to test on; the two are one object where there are few."""
    options = {"min_gap": config.min_gap, "pairs_per_text": config.pairs_per_text, "seed": config.seed}
    if config.held_out is None and config.method == "head":
        try:
            every = make_pairs(feedback, **options)
        except DataError as error:
            raise DataError(f"{redact(', '.join(config.feedback))}: too little feedback: {error}") from error
        if len(every) <= FEW:
            return _prepare_few(every, config)
        if config.criterion is not None:
            raise DataError(
                f"criterion: is for at most {FEW} pairs, and there are {len(every):,}, which say more than it does; "
                "leave it out"
            )
    share = _HELD_OUT if config.held_out is None else config.held_out
    split = split_by_prompt(feedback, share, config.seed)
    sides: list[Pairs] = []
    for name, side in (("to learn from", split.train), ("held out", split.held_out)):
        try:
            sides.append(make_pairs(side, **options))
        except DataError as error:
            raise DataError(
                f"{redact(', '.join(config.feedback))}: too little feedback: {name}, {error}; held_out is "
                f"{share:g}"
            ) from error
        if not sides[-1].outcomes.any():
            raise DataError(
                f"{redact(', '.join(config.feedback))}: too little feedback: {name}, every pair is a tie; held_out is "
                f"{share:g}; {NEEDED}"
            )
    facts = {
        "learn": f"{len(sides[0]):,} pairs of {len(sides[0].completions):,} texts to learn from",
        "test": f"{len(sides[1]):,} pairs of {len(sides[1].completions):,} other texts held out",
    }
    if split.num_dropped:
        facts["dropped"] = f"{split.num_dropped:,} pairs dropped that have one text on each side"
    return sides, facts


def _prepare_few(pairs: Pairs, config: RewardConfig) -> tuple[list[Pairs], dict[str, str]]:
    num_clear = int((pairs.outcomes != 0).sum())
    num_units = len(np.unique(pairs.units))
    if num_clear == 0 or num_units < _LEAST_UNITS:
        reason = (
            "every pair is a tie"
            if num_clear == 0
            else "all pairs have the same prompt (or text), so none is left to test"
        )
        raise DataError(
            f"{redact(', '.join(config.feedback))}: too little feedback: {len(pairs):,} pairs: {reason}; {NEEDED}"
        )
    fact = (
        f"{len(pairs):,} pairs of {len(pairs.completions):,} texts: few, so klimb learns from all of "
        "them and tests by 10-fold cross-validation over prompts (or texts)"
    )
    return [pairs, pairs], {"learn": fact}


def _write(result: RewardResult, config: RewardConfig, scorer: Scorer, check: Callable[[Path], None]) -> None:
    with whole_folder(config.out) as unfinished:
        scorer.save(unfinished)
        check(unfinished)
        options = {
            key: [str(v) for v in value]
            if isinstance(value, tuple)
            else str(value)
            if isinstance(value, Path)
            else value
            for key, value in dataclasses.asdict(config).items()
        }
        said: dict[str, Any] = {
            "options": redacted(options),
            "held_out": result.held_out.as_dict(),
            "train": result.train.as_dict(),
            "learning_curve": result.curve,
            "is_crossed": result.is_crossed,
            "verdict": result.verdict,
            "ridge": result.ridge,
            "tie": result.tie,
            "unit": result.unit,
        } | result.raters.as_dict()
        if result.tuning is not None and result.before is not None:
            said |= {"tuning": result.tuning.as_dict(), "before": result.before.as_dict()}
        (unfinished / "reward.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        (unfinished / "README.md").write_text(draw_card(result, config), encoding="utf-8")
        (unfinished / "report.html").write_text(draw_report(result, config), encoding="utf-8")
