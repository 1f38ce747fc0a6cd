"""A reward that is a Hugging Face sequence-classification model with one output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from klimb.errors import ConfigError, RewardError
from klimb.io.show import Text
from klimb.model import chat
from klimb.reward.failures import Answer, Failed
from klimb.reward.reward import Batch
from klimb.reward.scorer import Scorer


class ClassifierReward:
    """Scores prompt and completion together by a preference model, on its raw output.

    Axes: N completions, K members of an ensemble.

    r = s, or for an ensemble of K members r = mean_k s_k − c · std_k s_k, less where they disagree
    (Coste et al. 2024, "Reward Model Ensembles Help Mitigate Overoptimization").

    Attributes:
        scorer: The model.

    Args:
        source: The model's folder or its name on the hub.
        uncertainty_penalty: c; 0 takes the model's own score.
        device: Where it goes; the first GPU if there is one, else the CPU, where None.
        trust_remote_code: Whether Python code that comes with the model may run.

    Raises:
        ConfigError: c is above 0 and the model has no ensemble beside it.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        uncertainty_penalty: float = 0.0,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.name = str(source)
        self.scorer = Scorer.load(source, device=device, trust_remote_code=trust_remote_code)
        self.notes = self.scorer.notes
        self._uncertainty_penalty = uncertainty_penalty
        if uncertainty_penalty and self.scorer.members is None:
            raise ConfigError(
                f"uncertainty_penalty: reward {source} has no ensemble, so no disagreement to penalise: learn it with "
                "klimb reward train --num-members 4"
            )

    @property
    def longest(self) -> int | None:
        """Tokens that it reads at most; None where nothing limits them, or longer texts are cut."""
        return None if self.scorer.cuts else self.scorer.longest

    def count_tokens(self, prompt: Text) -> int:
        """Count the tokens of a prompt with an empty completion."""
        return len(self.scorer.tokenise(prompt, ""))

    def __call__(self, batch: Batch) -> list[Answer]:
        """Score each completion after its prompt; one that cannot be read is `Failed`.

        It cannot where it is longer than the model can read, or has messages while the model has no chat template.
        """
        encoded = self._encode(batch)
        texts = [ids for ids in encoded if not isinstance(ids, Failed)]
        scores = iter(self._scores(texts) if texts else [])
        return [ids if isinstance(ids, Failed) else next(scores) for ids in encoded]

    def member_scores(self, batch: Batch) -> Float[np.ndarray, "N K"]:
        """Score each completion by each member of the ensemble; NaN where it cannot be read.

        Raises:
            ConfigError: There is no ensemble.
        """
        members = self.scorer.members
        if members is None:
            raise ConfigError(f"reward {self.name}: has one member, which cannot disagree with itself")
        encoded = self._encode(batch)
        rows = [index for index, ids in enumerate(encoded) if not isinstance(ids, Failed)]
        found = np.full((len(encoded), len(members)), np.nan)
        if rows:
            features = self.scorer.features([ids for ids in encoded if not isinstance(ids, Failed)])
            found[rows] = features.astype(np.float64) @ members.astype(np.float64).T
        return found

    def check_prompt(self, prompt: Text, columns: Mapping[str, Any]) -> None:
        """Raise where the chat template refuses a prompt with an answer, whatever the answer is.

        Raises:
            RewardError: It does, or there is none.
        """
        if not isinstance(prompt, str):
            self.scorer.render(chat.conversation(prompt, "?"), columns)

    def _encode(self, batch: Batch) -> list[list[int] | Failed]:
        turns, openings = batch.turns or [None] * len(batch.texts), batch.openings or [""] * len(batch.texts)
        encoded: list[list[int] | Failed] = []
        for index, (prompt, text) in enumerate(zip(batch.prompts, batch.texts, strict=True)):
            said = turns[index] or text
            try:
                encoded.append(self.scorer.encode(prompt, said, batch.column(index), openings[index]))
            except RewardError as error:
                encoded.append(Failed(str(error)))
        return encoded

    def _scores(self, texts: list[list[int]]) -> list[float]:
        if not self._uncertainty_penalty or self.scorer.members is None:
            return self.scorer.scores(texts).tolist()
        scores = self.scorer.features(texts).astype(np.float64) @ self.scorer.members.T
        return (scores.mean(axis=1) - self._uncertainty_penalty * scores.std(axis=1)).tolist()
