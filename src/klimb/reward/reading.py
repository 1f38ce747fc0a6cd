"""Judgements as a reward model reads them: encoded once, and without those that it cannot read."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from klimb.errors import DataError, RewardError, TooLongError
from klimb.feedback.comparison import Comparison, Rating
from klimb.feedback.formats import Feedback
from klimb.feedback.pairs import Pairs
from klimb.io.show import Text, cut, printable
from klimb.model.progress_bars import without_progress_bars
from klimb.reward.scorer import Scorer

_SHOWN = 20  # refused judgements that are printed one by one
_SAMPLE = 64  # texts that the saved tokenizer is compared on
_ROUNDING = 1e-3  # of the scores' own size: padding changes the order of sums


class Reader:
    """Encodes texts, each once.

    Args:
        scorer: The model that reads them.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._found: dict[tuple[str, str], list[int] | RewardError] = {}

    def encode(self, prompt: Text, completion: str) -> list[int]:
        """Encode a prompt and its completion.

        Raises:
            RewardError: They cannot be read.
        """
        key = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True), completion
        if key not in self._found:
            try:
                self._found[key] = self._scorer.encode(prompt, completion)
            except RewardError as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, RewardError):
            raise found
        return found

    def encode_pairs(self, pairs: Pairs) -> list[list[int]]:
        """Encode the texts of pairs."""
        return [self.encode(*text) for text in zip(pairs.prompts, pairs.completions, strict=True)]

    def readable(self, feedback: Feedback, say: Callable[[str], None]) -> tuple[Feedback, int]:
        """Leave out the judgements of texts that cannot be read, and print each with its place and the reason.

        Returns:
            The others, and how many were left out.

        Raises:
            DataError: None is left.
        """
        kept: list[Any] = []
        refused: list[tuple[str, RewardError]] = []
        for judgement in [*feedback.comparisons, *feedback.ratings]:
            try:
                for text in _texts(judgement):
                    self.encode(judgement.prompt, text)
                kept.append(judgement)
            except RewardError as error:
                refused.append((_place(judgement), error))
        if not refused:
            return feedback, 0
        if not kept:
            place, error = refused[0]
            raise DataError(
                f"no text of the feedback can be read; the first, {place}: {error}{_advice(error)}"
            )
        for place, error in refused[:_SHOWN]:
            say(printable(f"  refused {place}: {error}"))
        if len(refused) > _SHOWN:
            say(f"  … and {len(refused) - _SHOWN:,} more")
        advice = next(filter(None, (_advice(error) for _, error in refused)), "")
        say(f"{len(refused):,} judgements refused, whose texts cannot be read{advice}")
        left = replace(
            feedback,
            comparisons=[one for one in kept if isinstance(one, Comparison)],
            ratings=[one for one in kept if isinstance(one, Rating)],
            refused=[*feedback.refused, *((place, str(error)) for place, error in refused)],
        )
        return left, len(refused)


def check_saved_tokenizer(scorer: Scorer, pairs: Pairs, encoded: list[list[int]]) -> None:
    """Compare what the tokenizer reads with what it will read once it was saved and loaded again.

    Raises:
        RewardError: They differ.
    """
    with tempfile.TemporaryDirectory() as folder, without_progress_bars():
        scorer.tokenizer.save_pretrained(folder)
        again = Scorer(scorer.model, AutoTokenizer.from_pretrained(folder), scorer.name)
    for prompt, completion, ids in list(zip(pairs.prompts, pairs.completions, encoded, strict=True))[
        :_SAMPLE
    ]:
        found = again.encode(prompt, completion)
        if found != ids:
            raise RewardError(
                f"reward {scorer.name}: its tokenizer ({type(scorer.tokenizer).__name__}) reads {cut(completion)!r} as "
                f"{len(ids)} tokens, and as {len(found)} others after it was saved and loaded; use another base, or "
                "leave out --question"
            )


@torch.no_grad()
def check_deployed(scorer: Scorer, folder: Path, pairs: Pairs, scores: np.ndarray) -> None:
    """Score a few texts as a user of transformers does with the saved folder: its tokenizer, the model's own forward.

    The model is not loaded again: it is the one whose weights were just written.

    Raises:
        RewardError: A score differs from the one that was evaluated by more than rounding.
    """
    with without_progress_bars():
        again = Scorer(scorer.model, AutoTokenizer.from_pretrained(folder), scorer.name)
    chosen = range(min(len(pairs.completions), 8))
    worst = 0.0
    for index in chosen:
        ids = torch.tensor([again.encode(pairs.prompts[index], pairs.completions[index])])
        logits = scorer.model(input_ids=ids.to(scorer.model.device)).logits
        worst = max(worst, abs(float(logits[0, 0]) - float(scores[index])))
    size = float(np.abs(scores).max()) + float(scores.std())
    if not worst <= _ROUNDING * max(size, 1e-6):
        raise RewardError(
            f"reward {scorer.name}: in transformers the saved model gives scores that differ by {worst:.2g} from those "
            "that were evaluated; nothing was written; please report this base"
        )


def _texts(judgement: Comparison | Rating) -> list[str]:
    return [judgement.completion] if isinstance(judgement, Rating) else [judgement.left, judgement.right]


def _place(judgement: Comparison | Rating) -> str:
    return judgement.place or f"the judgement of {cut(_texts(judgement)[0])!r}"


def _advice(error: RewardError) -> str:
    if isinstance(error, TooLongError):
        return "; --truncate left (or right) cuts longer texts instead"
    return ""
