"""The position of a classification model's score, and padding that keeps it the same in a batch.

transformers' decoders score the rightmost token that is not `config.pad_token_id`; BART and T5 score an end token, and
XLNet the last position. Encoders score their first token, and padding does not concern them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def known_padding(model: Any) -> int | None:
    """Return the id that a model takes for padding; None where it names none, or one that it cannot embed."""
    token = getattr(model.config.get_text_config(), "pad_token_id", None)
    return token if _can_embed(model, token) else None


def set_padding(model: Any, token: int | None) -> None:
    """Let a model take this id for padding, in its configuration and in that of its text part."""
    model.config.pad_token_id = token
    model.config.get_text_config().pad_token_id = token


def spare_token(model: Any, texts: Iterable[list[int]]) -> int | None:
    """Find an id in which no text ends; None where texts end in all of them."""
    ends = {ids[-1] for ids in texts if ids}
    return next((token for token in range(_num_tokens(model)) if token not in ends), None)


def choose_padding(model: Any, tokenizer: Any, texts: Iterable[list[int]]) -> int | None:
    """Choose a special token to pad with, if possible one in which no text ends, so that the last one is scored.

    A chat template often ends in the end token, which is often the padding, too: the token before it would be scored.

    Args:
        model: The classification model.
        tokenizer: Its tokenizer.
        texts: Encoded, as they will be scored.

    Returns:
        The tokenizer's own padding, the model's, the end token, or another special token, in this order of
        preference; the first of them where texts end in each; None where there is no special token.
    """
    spare = sorted(set(tokenizer.all_special_ids) | _added(tokenizer), reverse=True)
    named = [tokenizer.pad_token_id, known_padding(model), tokenizer.eos_token_id, tokenizer.unk_token_id]
    usable = [token for token in dict.fromkeys([*named, *spare]) if _can_embed(model, token)]
    ends = {ids[-1] for ids in texts if ids}
    return next((token for token in usable if token not in ends), usable[0] if usable else None)


def pad(texts: list[list[int]], token: int) -> dict[str, Tensor]:
    """Pad encoded texts on the right to one length.

    Returns:
        `input_ids` and `attention_mask`, (n, T).
    """
    longest = max(map(len, texts))
    ids = [text + [token] * (longest - len(text)) for text in texts]
    mask = [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def batch_key(model: Any, text: list[int]) -> int:
    """Say what a text must have in common with those that the model reads at once."""
    if model.config.model_type == "xlnet":  # scores the last position, padding or not
        return len(text)
    end = _scored_end(model)
    return 0 if end is None else text.count(end)  # as many in each, or it refuses


def can_score(model: Any, text: list[int]) -> bool:
    """Whether a text has the token at which a model reads its score."""
    end = _scored_end(model)
    return end is None or end in text


def _scored_end(model: Any) -> int | None:
    """The end token at which BART and T5 read a score; None for all others."""
    config = model.config
    return (
        config.eos_token_id if config.is_encoder_decoder and hasattr(model, "classification_head") else None
    )


def longest_text(model: Any) -> int | None:
    """Return how many tokens a model can read; None where it sets no limit."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if (
            isinstance(table, torch.nn.Embedding) and table.padding_idx is not None
        ):  # RoBERTa counts from there
            return table.num_embeddings - table.padding_idx - 1
    return longest if isinstance(longest, int) and longest > 0 else None  # DeBERTa: -1 or 0 for none


def _num_tokens(model: Any) -> int:
    return model.get_input_embeddings().weight.shape[0]


def _can_embed(model: Any, token: Any) -> bool:
    return isinstance(token, int) and 0 <= token < _num_tokens(model)


def _added(tokenizer: Any) -> set[int]:
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return {token for token, content in added.items() if content.special}
