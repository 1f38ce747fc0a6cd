"""A criterion as a direction in a language model's features, known before anyone judges."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from klimb.config.criterion import Criterion
from klimb.errors import ConfigError


def criterion_direction(
    criterion: Criterion, base: str | Path, scorer_model: Any, tokenizer: Any
) -> Float[np.ndarray, " D"]:
    """Find p, of which p · h is how much likelier the model's next word is a liked one than a disliked one.

    p = mean of the output embeddings of the liked words − that of the disliked ones; h is what the head sees, at
    the end of the question. So p · h is the difference of their mean logits, with no word read or written.

    Args:
        criterion: The words.
        base: The language model.
        scorer_model: The classification model that was made from it.
        tokenizer: Its tokenizer.

    Raises:
        ConfigError: The model has no output embeddings of that width, or two words begin with one token.
    """
    tokens = [
        {_first_token(tokenizer, word) for word in side} for side in (criterion.liked, criterion.disliked)
    ]
    if both := tokens[0] & tokens[1]:
        raise ConfigError(
            f"criterion: words of both sides begin with the same token, {tokenizer.decode(sorted(both)[:1])!r}; "
            "choose others"
        )
    rows = _output_embeddings(base, scorer_model)
    liked, disliked = (rows[sorted(side)].double().mean(dim=0) for side in tokens)
    return (liked - disliked).cpu().numpy()


def _first_token(tokenizer: Any, word: str) -> int:
    """The token with which a word begins after a space: tokenizers write the space into it, or add one themselves."""
    written = [tokenizer.encode(text, add_special_tokens=False) for text in (f" {word}", word)]
    whole = [ids[0] for ids in written if len(ids) == 1]
    found = [*whole, *(token for token in written[0] if tokenizer.decode([token]).strip())]
    if not found:
        raise ConfigError(f"criterion: the tokenizer has no token for {word!r}; choose another word")
    return found[0]


def _output_embeddings(base: str | Path, scorer_model: Any) -> Any:
    """The rows by which the model makes its logits: its token embeddings where the two are tied."""
    if scorer_model.config.is_encoder_decoder or not getattr(scorer_model, "score", None):
        raise ConfigError(f"criterion: {base} is not a decoder that generates text; leave the criterion out")
    inputs = scorer_model.get_input_embeddings().weight
    if scorer_model.config.get_text_config().tie_word_embeddings:
        return inputs.detach()
    from klimb.model.load import WRITER, load

    outputs = load(WRITER, base).model.get_output_embeddings()
    if outputs is None or outputs.weight.shape[1] != scorer_model.score.weight.shape[1]:
        raise ConfigError(f"criterion: {base} has no output embeddings; leave the criterion out")
    return outputs.weight.detach()
