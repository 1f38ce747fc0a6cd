"""Chat messages of other tools, converted to one form: text under `role` and `content`.

Role names of ShareGPT, Open-Assistant and Gemma are mapped, parts of Gemini and types of LangChain are read, content in
parts is joined, keys without a value are dropped. What cannot be read as text is refused by its name.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from klimb.errors import DataError
from klimb.io.show import Message, Text, quote, surrogate_in

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
    "ai": "assistant", "chatbot": "assistant",
    "tool": "tool", "function": "tool", "ipython": "tool", "observation": "tool",
}  # fmt: skip
"""Each known role name and the role that chat templates know it by."""

_FORMS = (
    ("role", "content"), ("from", "value"), ("role", "text"), ("role", "value"), ("from", "content"), ("role", "parts"),
)  # fmt: skip
_LANGCHAIN = ("type", "content")
_PRINTED = re.compile(r"\s*\[\{'(role|content|from|value)':")
_TEXT_PARTS = ("text", "input_text", "output_text")


class MessageError(ValueError):
    """A message that cannot be read as text, and why."""


def read_messages(value: Any) -> list[Message]:
    """Bring a list of messages into one form.

    Args:
        value: A list of objects with `role` and `content`, or `from` and `value`. Content is text, or a list of parts
            each of which is text. It may be missing where a message has `tool_calls`.

    Returns:
        New messages: `role` and `content` first, then every other key that has a value.

    Raises:
        MessageError: It is not such a list, a role is unknown, or content is no text.
    """
    if not isinstance(value, list):
        raise MessageError(f"expected a list of messages, got {quote(value)}")
    if not value:
        raise MessageError("the list of messages is empty")
    return [read_message(message, number) for number, message in enumerate(value, start=1)]


def unfold(value: Any) -> Any:
    """Messages that stand as JSON in a text, as tables hold them; any other value as it is.

    Raises:
        MessageError: They stand there as Python prints them.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    if _PRINTED.match(value):
        raise MessageError(
            "chat messages as Python prints them, which a .csv file of chats has: save them as .jsonl or .parquet"
        )
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    is_chat = isinstance(found, list) and all(
        isinstance(item, dict) and any(a in item and b in item for a, b in _FORMS) for item in found
    )
    return found if is_chat else value


def read_message(message: Any, number: int = 1) -> Message:
    """Bring one message into the form of `read_messages`.

    Raises:
        MessageError: As there.
    """
    form = None
    if isinstance(message, Mapping):
        form = next((form for form in _FORMS if form[0] in message and form[1] in message), None)
        if form is None and str(message.get("type")).lower() in ROLES and "content" in message:
            form = _LANGCHAIN
        if form is None and "role" in message and message.get("tool_calls"):
            form = ("role", "content")
    if form is None:
        raise MessageError(f"expected messages with a text `role` and `content`, got {quote(message)}")
    role, content = message[form[0]], message.get(form[1])
    if not isinstance(role, str):
        raise MessageError(f"expected messages with a text `role` and `content`, got {quote(message)}")
    if problem := surrogate_in(role):
        raise MessageError(problem)
    if role.strip().lower() not in ROLES:
        raise MessageError(
            f"message {number}: the role {quote(role)} is not known; expected one of {', '.join(ROLES)}"
        )
    text = _text_of(content, message, number)
    if problem := surrogate_in(text):
        raise MessageError(problem)
    more = {key: item for key, item in message.items() if key not in form and item is not None}
    return {"role": ROLES[role.strip().lower()], "content": text, **more}


def with_system_prompt(prompt: Text, system_prompt: str, where: str) -> Text:
    """Put a message of the system before messages that do not begin with one of their own.

    Args:
        prompt: Messages in the form of `read_messages`.
        system_prompt: What the system says.
        where: Place of the prompt, for a message.

    Raises:
        DataError: The prompt is plain text, which has no roles.
    """
    if isinstance(prompt, str):
        raise DataError(
            f"{where}: expected chat messages, since a system prompt is given, got plain text, which is continued "
            'unchanged; write it as [{"role": "user", "content": …}], or leave the system prompt out'
        )
    begins_with_one = ROLES.get(str(prompt[0].get("role")).strip().lower()) == "system" if prompt else False
    return prompt if begins_with_one else [{"role": "system", "content": system_prompt}, *prompt]


def _text_of(content: Any, message: Mapping[str, Any], number: int) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        if message.get("tool_calls") or message.get("function_call"):
            return ""
        raise MessageError(
            f"message {number}: expected messages with a text `role` and `content`, got {quote(dict(message))}: it has "
            "no content"
        )
    if not isinstance(content, list):
        raise MessageError(f"expected messages with a text `role` and `content`, got {quote(dict(message))}")
    return "".join(_text_of_part(part, number) for part in content)


def _text_of_part(part: Any, number: int) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise MessageError(f"message {number}: expected parts of content that are text, got {quote(part)}")
    kind = part.get("type", "text")
    others = [key for key in part if key not in ("type", "text", "mimeType") and part[key]]
    if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        raise MessageError(
            f"message {number}: its content has a part of type {quote(kind)}; klimb reads only text"
        )
    if any(name in others for name in ("image", "image_url", "audio", "video")):
        raise MessageError(
            f"message {number}: its content has a part with {others[0]!r}; klimb reads only text"
        )
    return part["text"]
