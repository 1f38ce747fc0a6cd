"""A reward that is a Hugging Face sequence-classification model with one output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from klimb.errors import ConfigError, RewardError
from klimb.policy import chat
from klimb.reward.failures import Answer, Failed
from klimb.reward.reward import Batch
from klimb.reward.scorer import Scorer
from klimb.text import Text


class ClassifierReward:
    """Scores prompt and completion together by a preference model, on its raw output.

    r = s, or for an ensemble of K members r = mean_k s_k − c · std_k s_k, less where they disagree
    (Coste et al. 2024, "Reward Model Ensembles Help Mitigate Overoptimization").

    Args:
        source: The model's folder or its name on the hub.
        caution: c; 0 takes the model's own score.
        device: Where it goes; the first GPU if there is one, else the CPU, where None.
        trust_remote_code: Whether Python code that comes with the model may run.

    Raises:
        ConfigError: c is above 0 and the model has no ensemble beside it.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        caution: float = 0.0,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.name = str(source)
        self._scorer = Scorer.load(source, device=device, trust_remote_code=trust_remote_code)
        self.notes = self._scorer.notes
        self._caution = caution
        if caution and self._scorer.members is None:
            raise ConfigError(
                f"caution: reward {source} has no ensemble whose spread could be taken off: learn it with "
                "klimb reward train --num-members 4"
            )

    @property
    def longest(self) -> int | None:
        """Tokens that it reads at most; None where nothing limits them, or longer texts are cut."""
        return None if self._scorer.cuts else self._scorer.longest

    def count_tokens(self, prompt: Text) -> int:
        """Count the tokens of a prompt with an empty completion."""
        return len(self._scorer.tokenise(prompt, ""))

    def __call__(self, batch: Batch) -> list[Answer]:
        """Score each completion after its prompt; one that cannot be read is `Failed`.

        It cannot where it is longer than the model can read, or has messages while the model has no chat template.
        """
        answers: list[Answer] = []
        texts: list[list[int]] = []
        turns, openings = batch.turns or [None] * len(batch.texts), batch.openings or [""] * len(batch.texts)
        for index, (prompt, text) in enumerate(zip(batch.prompts, batch.texts, strict=True)):
            said = turns[index] or text
            try:
                texts.append(self._scorer.encode(prompt, said, batch.column(index), openings[index]))
                answers.append(None)
            except RewardError as error:
                answers.append(Failed(str(error)))
        scores = iter(self._scores(texts) if texts else [])
        return [next(scores) if answer is None else answer for answer in answers]

    def check_prompt(self, prompt: Text, columns: Mapping[str, Any]) -> None:
        """Raise where the chat template refuses a prompt with an answer, whatever the answer is.

        Raises:
            RewardError: It does, or there is none.
        """
        if not isinstance(prompt, str):
            self._scorer.render(chat.conversation(prompt, "?"), columns)

    def _scores(self, texts: list[list[int]]) -> list[float]:
        if not self._caution or self._scorer.members is None:
            return self._scorer.scores(texts).tolist()
        scores = self._scorer.features(texts).astype(np.float64) @ self._scorer.members.T
        return (scores.mean(axis=1) - self._caution * scores.std(axis=1)).tolist()
