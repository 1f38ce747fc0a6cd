"""A reward fitted while people judge, so that they see its accuracy and when they can stop."""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np

from klimb.config.criterion import Criterion
from klimb.errors import DataError, KlimbError, StoreError
from klimb.feedback.comparison import Comparison
from klimb.feedback.formats import Feedback
from klimb.feedback.pairs import make_pairs
from klimb.feedback.store.store import Store
from klimb.io.progress import ignore
from klimb.reward.learn.chance import chance_level
from klimb.reward.learn.criterion import criterion_direction
from klimb.reward.learn.evaluation import Evaluation, evaluate
from klimb.reward.learn.evidence import cross_scores
from klimb.reward.learn.verdict import pairs_needed
from klimb.reward.reading import Reader
from klimb.reward.scorer import Scorer

_POLL = 1.0  # seconds from one check for new judgements to the next
_EVERY = 5  # judgements that make another fit worth its time
_FIRST = 10
_PATIENCE = 10.0  # seconds that a fit under way is given at the end
_COIN = 0.5  # accuracy of one
_MOST_CHANCE = 0.005  # stricter than at the end: it is tested again after every few answers
_MOST = 500  # as many as klimb reward train learns from in this way


class AlongsideReward:
    """Learns in a thread of its own from what a store holds, and puts in words what that is worth.

    It learns as `klimb reward train` does from few judgements, and reads each text once.

    Attributes:
        words: What raters are told; "" before there is anything to tell.

    Args:
        store: What people say.
        base: The model that reads the texts.
        criterion: What people look for, in words for it and against it.
        turn: Held while the base computes, so that nothing else does.
    """

    def __init__(
        self,
        store: Store,
        base: str,
        criterion: str | None = None,
        turn: AbstractContextManager[object] | None = None,
    ) -> None:
        self.words = ""
        self._store, self._base, self._criterion = store, base, criterion
        self._turn = turn or nullcontext()
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="klimb-alongside", daemon=True)

    def __enter__(self) -> "AlongsideReward":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join(_PATIENCE)

    def _go_on(self) -> None:
        learner: _Learner | None = None
        num_learned = 0
        while not self._has_ended.wait(_POLL):
            try:
                said = self._store.feedback().comparisons
            except StoreError:  # the page meets it too, and tells the rater
                continue
            if not _FIRST <= len(said) <= _MOST or len(said) < num_learned + _EVERY:
                continue
            num_learned = len(said)
            try:
                with self._turn:
                    learner = learner or _Learner(self._base, self._criterion)
                    self.words = words_of(learner.evaluate(said))
            except KlimbError:
                self.words = ""
                if learner is None:
                    return  # no reward can be made from this base; klimb reward train says why
            except Exception:
                self.words = ""
                return


class _Learner:
    """What a base's head sees of texts, each read once."""

    def __init__(self, base: str, criterion: str | None) -> None:
        self._scorer = Scorer.from_base(base, question=None)
        self._reader = Reader(self._scorer)
        self._known: dict[tuple[int, ...], np.ndarray] = {}
        self._prior: np.ndarray | None = None
        if criterion is not None:
            words = Criterion.parse(criterion)
            self._prior = criterion_direction(words, base, self._scorer.model, self._scorer.tokenizer)

    def evaluate(self, said: Sequence[Comparison]) -> Evaluation:
        """Test each tenth of the prompts by what the others teach."""
        readable, _ = self._reader.readable(Feedback(comparisons=list(said)), ignore)
        pairs = make_pairs(readable)
        if not pairs.outcomes.any() or len(np.unique(pairs.units)) < 2:
            raise DataError("nothing can be tested yet")
        encoded = [tuple(ids) for ids in self._reader.encode_pairs(pairs)]
        new = sorted({ids for ids in encoded if ids not in self._known})
        if new:
            for ids, seen in zip(new, self._scorer.features([list(ids) for ids in new]), strict=True):
                self._known[ids] = seen
        features = np.stack([self._known[ids] for ids in encoded])
        crossed, tested = cross_scores(features, pairs, self._prior, 0)
        return replace(evaluate(crossed, tested), chance=chance_level(features, pairs, self._prior))


def words_of(found: Evaluation) -> str:
    """Describe the accuracy of the reward that was learned from the judgements so far."""
    share = (
        f"A reward learned from {found.num_clear} answers agrees with people on {found.accuracy:.2f} of held-out pairs "
        f"({found.accuracy_low:.2f} to {found.accuracy_high:.2f})"
    )
    if found.beats_chance and (found.chance or 0.0) <= _MOST_CHANCE:
        return f"{share}: better than chance. It is enough to train on; more answers make it better."
    if found.accuracy_low > _COIN:
        level = f"{found.chance or 0.0:.2g}"
        return f"{share}: not sure yet, since answers at random agree as well in {level} of cases."
    needed = pairs_needed(found.accuracy)
    if needed is None or needed <= found.num_clear:
        return f"{share}: not better than chance yet."
    return f"{share}: not better than chance yet; about {needed} answers may be enough."
