"""Checks that a tokenizer fits its model, and that a text can be tokenized."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from klimb.errors import DataError, KlimbError


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Let what a tokenizer raises of a text be an error that names it.

    Raises:
        DataError: The tokenizer cannot read the text.
    """
    try:
        yield
    except KlimbError:
        raise
    except Exception as error:  # a tokenizer is a program of the model's maker, in Python or in Rust
        raise DataError(
            f"the model's tokenizer cannot read {what}: {type(error).__name__}: {error}"
        ) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the Rust in tokenizers; Ctrl-C is none of these
            raise
        raise DataError(
            f"the model's tokenizer cannot read {what}, its files are damaged: {error}"
        ) from error


def require_known(ids: Sequence[int], model: Any, tokenizer: Any, what: str) -> None:
    """Raise where a text has a token for which the model has no embedding.

    Raises:
        DataError: The token, and the remedy.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if ids and max(ids) >= rows:
        token = max(ids)
        raise DataError(
            f"{what} has the token {tokenizer.convert_ids_to_tokens(token)} ({token}), and the model has {rows:,} "
            "embeddings: it was added only to the tokenizer: take the tokenizer that the model came with, or call "
            "model.resize_token_embeddings(len(tokenizer)) and save the model"
        )


def separates_pairs(tokenizer: Any) -> bool:
    """Whether a tokenizer without a chat template puts a mark of its own between two texts, as BERT's does."""
    mark = getattr(tokenizer, "sep_token_id", None)
    if mark is None or getattr(tokenizer, "chat_template", None) is not None:
        return False
    with contextlib.suppress(DataError), readable("two texts"):
        return tokenizer("a", "a").input_ids.count(mark) > tokenizer("a").input_ids.count(mark)
    return False
