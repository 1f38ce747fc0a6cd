"""Texts: the two forms of a prompt or completion, what makes one unusable, and what of one may be shown or written."""

import datetime
import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]
"""One turn of a chat: `role` and `content`."""

Text: TypeAlias = str | list[Message]
"""Plain text, to be continued as it stands, or chat messages, to be answered through the chat template."""

_SHOWN = 60  # characters of a text that a message quotes
_HARMLESS = frozenset(
    "\n\t\u00a0\u3000\u200c\u200d"
)  # wide spaces, and what joins letters or the parts of an emoji
_SECRETS = (
    (re.compile(r"(https?:/{1,2})[^\s/?#]+@", re.IGNORECASE), r"\1***@"),
    (re.compile(r"((?<!http)(?<!https):/{1,2}[^\s/:@]*:)\S+@", re.IGNORECASE), r"\1***@"),
    (
        re.compile(
            r"([?&;][\w.-]{0,40}?(?:token|key|secret|pass|pwd|sig|auth|credential|jwt|session)"
            r"[\w.-]{0,40}=)[^&#;\s'\"]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
)


def problem_with(text: Any) -> str | None:
    """Say what is wrong with something that should be text or messages, or None."""
    if isinstance(text, str):
        return surrogate_in(text) or (None if text.strip() else "it is empty")
    if not isinstance(text, list):
        return f"expected text or a list of messages, got {quote(text)}"
    if not text:
        return "the list of messages is empty"
    for message in text:
        is_message = isinstance(message, dict) and {"role", "content"} <= message.keys()
        if not (is_message and isinstance(message["role"], str) and isinstance(message["content"], str)):
            return f"expected messages with a text `role` and `content`, got {quote(message)}"
        if problem := surrogate_in(message["role"]) or surrogate_in(message["content"]):
            return problem
    return None


def content_of(message: Message) -> str:
    """What a message says: its text, the text of its parts, or "" where it only calls tools."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)
    return content or ""


def null_in(text: Text) -> str | None:
    """Say where a null byte stands in a text, or None: what is not text, or was read in another encoding, has some."""
    parts = [text] if isinstance(text, str) else [message["content"] for message in text]
    place = next((place for part in parts if (place := part.find("\0")) >= 0), None)
    return None if place is None else f"a null byte at character {place} is not text"


def surrogate_in(text: str) -> str | None:
    """Say where half of a surrogate pair stands in a text, which no file can hold, or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair, {text[error.start]!r}, at character {error.start} is not text"
    return None


def plain(value: Any) -> Any:
    r"""A value as JSON can hold it: what JSON has no form for, such as a time, stands as text.

    Bytes that are no text stand as their number; numbers that are not finite as `nan`, `inf` and `-inf`.

    Example:
        >>> import datetime, decimal
        >>> plain({"at": datetime.date(2023, 4, 9), "cost": [decimal.Decimal("1.5"), float("nan")], 1: b"\xff"})
        {'at': '2023-04-09', 'cost': ['1.5', 'nan'], '1': '1 bytes'}
    """
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if callable(getattr(value, "tolist", None)) and not isinstance(value, memoryview):  # of NumPy
        return plain(value.tolist())
    return _plain_one(value)


def _plain_one(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes" if (text := _decoded(value)) is None else text
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


def _decoded(value: bytes | bytearray | memoryview) -> str | None:
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        return None


def cut(text: str) -> str:
    """The beginning of a text, for a message: one line, without characters that would steer a terminal."""
    stripped = text.strip()
    shown = stripped if len(stripped) <= _SHOWN else stripped[:_SHOWN] + "…"
    return printable(shown).replace("\n", "\\n").replace("\t", "\\t")


def quote(value: Any) -> str:
    """The beginning of whatever stands in a row, for a message."""
    try:
        return cut(repr(value))
    except (RecursionError, ValueError):  # ValueError: a whole number of more than 4300 digits
        return f"a {type(value).__name__} that cannot be shown"


def printable(text: str) -> str:
    r"""A text as a terminal may show it, in its lines: what would steer it stands as its code, such as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _HARMLESS else repr(c)[1:-1] for c in text)


def redact(text: str) -> str:
    """A text without the secrets of URLs in it: passwords, what a query calls a token or key, tokens of the hub.

    Example:
        >>> redact("postgresql://ann:hunter2@host/feedback, http://me:x@host/score?api_key=k&n=1")
        'postgresql://ann:***@host/feedback, http://***@host/score?api_key=***&n=1'
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redacted(value: Any) -> Any:
    """Options, or anything made of JSON types, with every text in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list | tuple):
        return [redacted(part) for part in value]
    if isinstance(value, dict):
        return {key: redacted(part) for key, part in value.items()}
    return value


def safe(text: str) -> str:
    """A text for a terminal: redacted, and printable."""
    return printable(redact(text))
