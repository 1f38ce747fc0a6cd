"""From judgements to a reward model: `klimb reward train`.

Axes: n texts, D features, K members of an ensemble.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from klimb.errors import DataError, RunFolderError
from klimb.feedback.formats import Feedback
from klimb.feedback.pairs import Pairs, make_pairs, split_by_prompt
from klimb.feedback.sources import read_sources
from klimb.files import cache_folder, make_folder, whole_folder, write_file
from klimb.progress import Progress, Say
from klimb.reward.config import RewardConfig
from klimb.reward.criterion import Criterion
from klimb.reward.evaluation import Evaluation, evaluate
from klimb.reward.evidence import cross_scores, fit_by_evidence
from klimb.reward.head import Head, fit_head
from klimb.reward.reading import Reader, check_deployed, check_saved_tokenizer
from klimb.reward.scorer import Scorer
from klimb.reward.tuning import Tuning, tune
from klimb.reward.verdict import verdict
from klimb.text import printable, redact, redacted

_CURVE = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)  # shares of the prompts that the learning curve learns from
_LEAST = 10  # prompts that a point of the curve needs
_LEAST_UNITS = 2  # prompts (or texts), without which nothing can be tested
_HELD_OUT = 0.2
FEW = 500
"""Pairs up to which all are learned from, by evidence, and tested in parts."""


@dataclass(frozen=True)
class RewardResult:
    """A learned reward.

    Attributes:
        folder: Where it is.
        report: Its page.
        held_out: What it is worth on prompts it did not learn from.
        train: The same on those it did.
        curve: Prompts learned from, and held-out accuracy with its interval; with method head only.
        ridge: The ridge that was chosen for the linear head.
        tie: ν, how readily people call a tie.
        has_prompts: Whether texts answer prompts; where they stand alone, the split is by text.
        facts: What was read and done, for people.
        tuning: How weights were moved, with methods lora and whole.
        before: What the linear head that they started with is worth on prompts held out.
        is_crossed: Whether all pairs were learned from, and each part tested on what the others teach.
        has_criterion: Whether learning started from words for what people look for.
    """

    folder: Path
    report: Path
    held_out: Evaluation
    train: Evaluation
    curve: list[tuple[int, float, float, float]]
    ridge: float
    tie: float
    has_prompts: bool
    facts: dict[str, str]
    tuning: Tuning | None = None
    before: Evaluation | None = None
    is_crossed: bool = False
    has_criterion: bool = False

    @property
    def verdict(self) -> str:
        """Whether it beats chance, in a sentence."""
        return verdict(self.held_out, is_crossed=self.is_crossed, has_criterion=self.has_criterion)


@dataclass(frozen=True)
class _Learned:
    """What a method found: its head on frozen features, ν, the scores of the second side's texts, and its worth."""

    head: Head
    tie: float
    scores: np.ndarray
    train: Evaluation
    held_out: Evaluation
    fact: str
    curve: list[tuple[int, float, float, float]] = dataclasses.field(default_factory=list)
    tuning: Tuning | None = None
    before: Evaluation | None = None


def train_reward(config: RewardConfig, say: Callable[[str], None] = lambda _: None) -> RewardResult:
    """Learn a reward from what people said, test it on prompts held out, and write it.

    s(x, y) = w · h(x, y), h the base's last hidden state at the last token (or what its own head would
    see), w the weights that make what people said likeliest under Bradley–Terry with ties; with methods
    lora and whole h then moves too (`klimb.reward.tuning`).

    Args:
        config: What to learn from, and how.
        say: Is told what goes on.

    Raises:
        DataError: Nothing can be learned from the files.
        DivergedError: Weights have gone where scores are no longer finite.
        RewardError: The saved reward would give other scores than those that were evaluated.
        RunFolderError: The folder exists already.
        ModelNotFoundError: No such base.
    """
    if config.out.exists():
        raise RunFolderError(f"{config.out}: exists already; choose another folder, or remove it")
    feedback = read_sources(config.feedback)
    say(feedback.summary)
    for place, reason in feedback.refused[:5]:
        say(printable(f"  refused {place}: {reason}"))
    sides, facts = _prepare(feedback, config)
    for fact in facts.values():
        say(fact)

    say(f"Loading {config.base} …")
    scorer = Scorer.from_base(config.base, num_layers=config.num_layers, question=config.used_question)
    encoded, sides, facts = _encode(scorer, feedback, config, (sides, facts), say)
    if scorer.moment is not None:
        facts["clock"] = (
            f"the base's chat template writes the time: {scorer.moment} in this reward, now and later"
        )
        say(facts["clock"])
    scorer.settle_padding(text for side in encoded for text in side)
    check_saved_tokenizer(scorer, sides[1], encoded[1])
    start = time.perf_counter()
    features = _features(scorer, encoded, say)
    facts["features"] = f"{features[0].shape[1]} features a text, {time.perf_counter() - start:.0f} s"
    is_crossed = sides[0] is sides[1]
    if is_crossed:
        learned = _learn_few(scorer, features[0], sides[0], config, say)
    elif config.method == "head":
        learned = _learn_head(scorer, features, sides, config, say)
    else:
        learned = _learn_weights(scorer, encoded, features, sides, config, say)
    facts["learned"] = learned.fact
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
        is_crossed,
        config.criterion is not None,
    )
    _write(result, config, scorer, lambda folder: check_deployed(scorer, folder, sides[1], learned.scores))
    return result


def _learn_head(
    scorer: Scorer, features: list[np.ndarray], sides: list[Pairs], config: RewardConfig, say: Say
) -> _Learned:
    start = time.perf_counter()
    head = fit_head(features[0], sides[0], seed=config.seed)
    curve = _learning_curve(features, sides[0], sides[1], head, config.seed)
    scorer.set_head(head.weights)
    scorer.members = _ensemble(features[0], sides[0], head, config, say)
    fact = f"ridge {head.ridge:,.4g}, learned in {time.perf_counter() - start:.0f} s"
    scores = [scorer.apply_head(x) for x in features]
    return _learned(head, head.tie, scores, sides, config, fact=fact, curve=curve)


def _learn_few(
    scorer: Scorer, features: np.ndarray, pairs: Pairs, config: RewardConfig, say: Say
) -> _Learned:
    """Learn from all pairs, and test each part of the prompts by what the others teach."""
    start, prior = time.perf_counter(), None
    if config.criterion is not None:
        criterion = Criterion.parse(config.criterion)
        prior = criterion.direction(config.base, scorer.model, scorer.tokenizer)
    head = fit_by_evidence(features, pairs, prior)
    scorer.set_head(head.weights)
    if config.num_members > 1:
        scorer.members = _resampled(
            pairs, config, say, lambda drawn: fit_by_evidence(features, drawn, prior).weights
        )
    crossed, tested = cross_scores(features, pairs, prior, config.seed)
    scores = scorer.apply_head(features)
    words = "" if prior is None else f", the criterion's own score {head.trust:.2f}"
    return _Learned(
        head,
        head.tie,
        scores,
        evaluate(scores, pairs, head.tie, config.seed),
        evaluate(crossed, tested, head.tie, config.seed),
        f"a typical margin is {head.spread:.2f} nats{words}; {time.perf_counter() - start:.0f} s",
    )


def _learned(
    head: Head, tie: float, scores: list[np.ndarray], sides: list[Pairs], config: RewardConfig, **more: Any
) -> _Learned:
    train, held_out = (
        evaluate(found, side, tie, config.seed) for found, side in zip(scores, sides, strict=True)
    )
    return _Learned(head, tie, scores[1], train, held_out, **more)


def _learn_weights(
    scorer: Scorer,
    encoded: list[list[list[int]]],
    features: list[np.ndarray],
    sides: list[Pairs],
    config: RewardConfig,
    say: Callable[[str], None],
) -> _Learned:
    start = time.perf_counter()
    tuning = tune(scorer, encoded[0], features[0], sides[0], config, say)
    head = tuning.start
    before = evaluate(head.scores(features[1]), sides[1], head.tie, config.seed)
    kept = f"the weights after epoch {tuning.chosen.number} of {config.num_epochs} were kept"
    if tuning.chosen.number == 0:
        kept = "no epoch was better than the linear head, which was kept as it is"
    fact = (
        f"{tuning.num_weights:,} weights moved by {tuning.num_pairs:,} of the pairs, the others chose the epoch: "
        f"{kept}; {time.perf_counter() - start:.0f} s"
    )
    say(fact)
    with _watched(scorer, "scoring", sum(len(ids) for texts in encoded for ids in texts), say):
        scores = [scorer.scores(texts) for texts in encoded]
    return _learned(head, tuning.tie, scores, sides, config, fact=fact, tuning=tuning, before=before)


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
            raise DataError(f"{redact(', '.join(config.feedback))}: too little was said: {error}") from error
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
                f"{redact(', '.join(config.feedback))}: too little was said: {name}, {error}; held_out is "
                f"{share:g}"
            ) from error
        if not sides[-1].outcomes.any():
            raise DataError(
                f"{redact(', '.join(config.feedback))}: too little was said: {name}, every pair is a tie; held_out is "
                f"{share:g}"
            )
    facts = {
        "learn": f"{len(sides[0]):,} pairs of {len(sides[0].completions):,} texts to learn from",
        "test": f"{len(sides[1]):,} pairs of {len(sides[1].completions):,} other texts held out",
    }
    if split.num_dropped:
        facts["dropped"] = f"{split.num_dropped:,} pairs dropped, of which one text is on either side"
    return sides, facts


def _prepare_few(pairs: Pairs, config: RewardConfig) -> tuple[list[Pairs], dict[str, str]]:
    num_clear = int((pairs.outcomes != 0).sum())
    num_units = len(np.unique(pairs.units))
    if num_clear == 0 or num_units < _LEAST_UNITS:
        reason = (
            "every pair is a tie"
            if num_clear == 0
            else "all is about one prompt (or text), none is left to test"
        )
        raise DataError(
            f"{redact(', '.join(config.feedback))}: too little was said: {len(pairs):,} pairs: {reason}"
        )
    fact = (
        f"{len(pairs):,} pairs of {len(pairs.completions):,} texts: few, so that all are learned from, and each tenth "
        "of the prompts (or texts) is tested on what the others teach"
    )
    return [pairs, pairs], {"learn": fact}


def _features(
    scorer: Scorer, encoded: list[list[list[int]]], say: Callable[[str], None]
) -> list[Float[np.ndarray, "n D"]]:
    """Computed once for the same model and texts, however these are split, then taken from the cache."""
    texts = sorted({tuple(ids) for side in encoded for ids in side})
    shape = {key: value for key, value in scorer.model.config.to_dict().items() if key != "_name_or_path"}
    digest = hashlib.sha256(json.dumps([texts, shape], default=str, sort_keys=True).encode())
    for name, weight in scorer.model.named_parameters():  # of each weight a few numbers stand for all
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)].float().cpu().numpy()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + sample.tobytes())
    file = cache_folder() / "features" / f"{digest.hexdigest()[:32]}.npy"
    if file.is_file():
        found = np.load(file, allow_pickle=False)
    else:
        say(f"Reading {len(texts):,} texts, {sum(map(len, texts)):,} tokens …")
        with _watched(scorer, "reading", sum(map(len, texts)), say):
            found = scorer.features([list(ids) for ids in texts])
        make_folder(file.parent)
        write_file(file, _npy(found))
    row_of = {ids: row for row, ids in enumerate(texts)}
    return [found[[row_of[tuple(ids)] for ids in side]] for side in encoded]


@contextlib.contextmanager
def _watched(scorer: Scorer, what: str, num_tokens: int, say: Say) -> Iterator[None]:
    """Say now and then how many tokens have gone through the model."""
    progress = Progress(what, num_tokens, "tokens", say)

    def advance(_module: Any, _inputs: Any, named: dict[str, Any], _outputs: Any) -> None:
        progress.advance(int(named["attention_mask"].sum()))

    handle = scorer.model.register_forward_hook(advance, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _npy(array: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _subset(pairs: Pairs, units: np.ndarray, chosen: np.ndarray) -> Pairs:
    return pairs.take(np.isin(units[pairs.left], chosen) & np.isin(units[pairs.right], chosen))


def _learning_curve(
    features: list[np.ndarray], train: Pairs, held_out: Pairs, head: Head, seed: int
) -> list[tuple[int, float, float, float]]:
    units = train.units
    order = np.random.default_rng(seed).permutation(int(units.max()) + 1)
    curve: list[tuple[int, float, float, float]] = []
    for share in _CURVE:
        count = round(share * len(order))
        part = _subset(train, units, order[:count])
        if count < _LEAST or not (part.outcomes != 0).any():
            continue
        # The ridge stands against so many pairs: with fewer of them as much of it is as strong.
        found = head if share == 1 else fit_head(features[0], part, ridges=(head.ridge,))
        tested = evaluate(found.scores(features[1]), held_out, found.tie, seed)
        curve.append((count, tested.accuracy, tested.accuracy_low, tested.accuracy_high))
    return curve


def _ensemble(
    features: np.ndarray, train: Pairs, head: Head, config: RewardConfig, say: Say
) -> np.ndarray | None:
    """Heads of as many learners, each from prompts drawn with replacement."""
    if config.num_members == 1:
        return None
    return _resampled(
        train,
        config,
        say,
        lambda drawn: fit_head(features, drawn, ridges=(head.ridge,)).weights,
    )


def _resampled(
    train: Pairs, config: RewardConfig, say: Say, learn: Callable[[Pairs], np.ndarray]
) -> np.ndarray:
    generator = np.random.default_rng([config.seed, 1])
    units = train.units
    num_units = int(units.max()) + 1
    members: list[np.ndarray] = []
    progress = Progress("learning the ensemble", config.num_members, "members", say)
    for _ in range(config.num_members):
        times = np.bincount(generator.integers(num_units, size=num_units), minlength=num_units)
        left, right = units[train.left], units[train.right]
        copies = np.where(left == right, times[left], times[left] * times[right])
        rows = np.repeat(np.arange(len(train)), copies)
        members.append(learn(train.take(rows)))
        progress.advance()
    return np.stack(members)


def _write(result: RewardResult, config: RewardConfig, scorer: Scorer, check: Callable[[Path], None]) -> None:
    from klimb.reward.report import draw_report

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
        }
        if result.tuning is not None and result.before is not None:
            said |= {"tuning": result.tuning.as_dict(), "before": result.before.as_dict()}
        (unfinished / "reward.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        (unfinished / "report.html").write_text(draw_report(result, config), encoding="utf-8")
