"""A reward that is a Hugging Face sequence-classification model with one output."""

from pathlib import Path

from klimb.reward.reward import Batch
from klimb.reward.scorer import Scorer


class ClassifierReward:
    """Scores prompt and completion together by a preference model, on its raw output."""

    def __init__(
        self, source: str | Path, *, device: str | None = None, trust_remote_code: bool = False
    ) -> None:
        self.name = str(source)
        self._scorer = Scorer.load(source, device=device, trust_remote_code=trust_remote_code)

    def __call__(self, batch: Batch) -> list[float | None]:
        """Score each completion after its prompt.

        Raises:
            RewardError: A text is longer than the model can read, or has messages while the
                model has no chat template.
        """
        pairs = zip(batch.prompts, batch.texts, strict=True)
        return self._scorer.scores([self._scorer.encode(prompt, text) for prompt, text in pairs]).tolist()
