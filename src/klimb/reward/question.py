"""A question that a tokenizer itself puts after whatever it reads, so that every tool which loads it reads it, too."""

import json
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from klimb.errors import ConfigError

_SAMPLE = "a text"
_KEPT = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
    "model_input_names",
)


def append_question(tokenizer: Any, question: str) -> Any:
    """Return a tokenizer that reads a question after each text.

    Plain text is followed by the question's tokens, which stand before an end token that the tokenizer itself adds.
    A chat is followed by the question as text: its template writes it.

    Args:
        tokenizer: With a backend of the library `tokenizers`; it is changed.
        question: The text.

    Returns:
        A tokenizer of the plain class, which keeps this when it is saved and loaded.

    Raises:
        ConfigError: The tokenizer cannot append.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"question: {type(tokenizer).__name__} cannot append a text; leave the question out"
        )
    parts = _around(backend)
    asked = backend.encode(question, add_special_tokens=False)
    pieces = {
        name: {"id": name, "ids": list(ids), "tokens": [backend.id_to_token(token) for token in ids]}
        for name, ids in (("<before>", parts[0]), ("<question>", asked.ids), ("<after>", parts[1]))
        if ids
    }
    if "<question>" not in pieces:
        raise ConfigError(f"question: {question!r} has no tokens; leave it out")
    order = [name for name in ("<before>", "$A", "<question>", "<after>") if name == "$A" or name in pieces]
    backend.post_processor = TemplateProcessing(single=" ".join(order), special_tokens=list(pieces.values()))
    found = backend.encode(_SAMPLE).ids
    expected = [*parts[0], *backend.encode(_SAMPLE, add_special_tokens=False).ids, *asked.ids, *parts[1]]
    if found != expected:
        raise ConfigError(f"question: {type(tokenizer).__name__} does not append it; leave the question out")
    return _plain(tokenizer, question)


def _around(backend: Any) -> tuple[list[int], list[int]]:
    """Find the ids that a tokenizer puts before and after a text."""
    whole, bare = backend.encode(_SAMPLE).ids, backend.encode(_SAMPLE, add_special_tokens=False).ids
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise ConfigError(
        "question: the tokenizer changes the tokens of a text when it adds its special ones, so that nothing can "
        "be appended; leave the question out"
    )


def _plain(tokenizer: Any, question: str) -> Any:
    """Rebuild it in the class that keeps its post-processor: others, such as BERT's, write their own when loaded."""
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    kept = {name: getattr(tokenizer, name) for name in _KEPT if hasattr(tokenizer, name)}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, klimb_question=question, **special, **kept
    )
    template = tokenizer.chat_template
    if isinstance(template, dict):
        plain.chat_template = {name: _asking(text, question) for name, text in template.items()}
    elif template is not None:
        plain.chat_template = _asking(template, question)
    return plain


def _asking(template: str, question: str) -> str:
    """Let a chat template write the question after a chat that is not to be continued."""
    # Jinja drops a newline at the very end, which now is not the end.
    written = json.dumps(question, ensure_ascii=False)
    return template.removesuffix("\n") + "{% if not add_generation_prompt %}{{ " + written + " }}{% endif %}"
