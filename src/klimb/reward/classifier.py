"""A reward that is a Hugging Face sequence-classification model with one output."""

from pathlib import Path
from typing import Any

import torch

from klimb.errors import ModelNotFoundError, RewardError
from klimb.reward.reward import Batch, Text

_BATCH_SIZE = 16  # texts that go through the model at once


class ClassifierReward:
    """Scores prompt and completion together by a preference model, on its raw output."""

    def __init__(
        self, source: str | Path, *, device: str | None = None, trust_remote_code: bool = False
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.name = str(source)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
            model = AutoModelForSequenceClassification.from_pretrained(
                source, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(
                f"reward {source}: cannot load a classification model: {error}"
            ) from error
        if model.config.num_labels != 1:
            raise RewardError(
                f"reward {source}: expected a model with 1 output, a score, got {model.config.num_labels} labels"
            )
        self._model: Any = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self._tokenizer.pad_token_id

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[float | None]:
        """Score each completion after its prompt."""
        texts = [self._joined(p, text) for p, text in zip(batch.prompts, batch.texts, strict=True)]
        scores: list[float | None] = []
        for start in range(0, len(texts), _BATCH_SIZE):
            inputs = self._tokenizer(
                texts[start : start + _BATCH_SIZE], padding=True, truncation=True, return_tensors="pt"
            ).to(self._model.device)
            scores.extend(self._model(**inputs).logits[:, 0].tolist())
        return scores

    def _joined(self, prompt: Text, text: str) -> str:
        if isinstance(prompt, str):
            return prompt + text
        if self._tokenizer.chat_template is None:
            raise RewardError(
                f"reward {self.name}: the prompts are chat messages but its tokenizer has no chat template"
            )
        messages = [*prompt, {"role": "assistant", "content": text}]
        return self._tokenizer.apply_chat_template(messages, tokenize=False)
