"""A reward that is a Hugging Face sequence-classification model with one output."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from klimb.errors import ModelNotFoundError, RewardError
from klimb.reward.reward import Batch
from klimb.text import Text

_BATCH_SIZE = 16  # texts that go through the model at once


class ClassifierReward:
    """Scores prompt and completion together by a preference model, on its raw output."""

    def __init__(
        self, source: str | Path, *, device: str | None = None, trust_remote_code: bool = False
    ) -> None:
        self.name = str(source)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                source, use_safetensors=True, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelNotFoundError(
                f"reward {source}: cannot load a classification model: {error}"
            ) from error
        if model.config.num_labels != 1:
            raise RewardError(
                f"reward {source}: expected a model with 1 output, a score, got {model.config.num_labels} labels"
            )
        self._model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        self._longest = getattr(model.config, "max_position_embeddings", None)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self._tokenizer.pad_token_id

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[float | None]:
        """Score each completion after its prompt.

        Raises:
            RewardError: A text is longer than the model can read, or has messages while the
                model has no chat template.
        """
        rows = [self._encode(prompt, text) for prompt, text in zip(batch.prompts, batch.texts, strict=True)]
        scores: list[float | None] = []
        for start in range(0, len(rows), _BATCH_SIZE):
            inputs = self._tokenizer.pad(
                {"input_ids": rows[start : start + _BATCH_SIZE]}, return_tensors="pt"
            )
            scores.extend(self._model(**inputs.to(self._model.device)).logits[:, 0].tolist())
        return scores

    def _encode(self, prompt: Text, text: str) -> list[int]:
        if isinstance(prompt, str):
            ids = self._tokenizer(prompt + text).input_ids
        elif self._tokenizer.chat_template is None:
            raise RewardError(
                f"reward {self.name}: the prompts are chat messages but its tokenizer has no chat template"
            )
        else:
            messages = [*prompt, {"role": "assistant", "content": text}]
            chat = self._tokenizer.apply_chat_template(messages, tokenize=False)
            ids = self._tokenizer(chat, add_special_tokens=False).input_ids  # the template has put them in
        if self._longest is not None and len(ids) > self._longest:
            raise RewardError(
                f"reward {self.name}: prompt and completion have {len(ids)} tokens and it reads at most "
                f"{self._longest}: shorten the prompts, or lower --max-new-tokens"
            )
        return ids
