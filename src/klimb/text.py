"""The two forms that a prompt or a completion may have, as in TRL's data formats."""

from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]
"""One turn of a chat: `role` and `content`."""

Text: TypeAlias = str | list[Message]
"""Plain text, to be continued as it stands, or chat messages, to be answered through the chat template."""


def problem_with(text: Any) -> str | None:
    """Say what is wrong with something that should be text or messages, or None."""
    if isinstance(text, str):
        return _surrogate_in(text) or (None if text.strip() else "it is empty")
    if not isinstance(text, list):
        return f"expected text or a list of messages, got {cut(repr(text))}"
    if not text:
        return "the list of messages is empty"
    for message in text:
        is_message = isinstance(message, dict) and {"role", "content"} <= message.keys()
        if not (is_message and isinstance(message["role"], str) and isinstance(message["content"], str)):
            return f"expected messages with a text `role` and `content`, got {cut(repr(message))}"
        if problem := _surrogate_in(message["content"]):
            return problem
    return None


def cut(text: str) -> str:
    """The beginning of a text, for a message."""
    stripped = text.strip()
    return stripped if len(stripped) <= 60 else stripped[:60] + "…"


def _surrogate_in(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair, {text[error.start]!r}, at character {error.start} is not text"
    return None
