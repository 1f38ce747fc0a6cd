"""Prompts and completions of a row, under the many names and forms that data sets use."""

import re
from typing import Any

from klimb.data.messages import MessageError, read_message, read_messages, unfold
from klimb.feedback.formats.fields import METADATA, Fields, RefusedError, is_empty
from klimb.io.show import Message, Text, cut, problem_with, quote

HUMAN, ASSISTANT, SYSTEM = "\n\nHuman:", "\n\nAssistant:", "\n\nSystem:"
PROMPTS = (
    "prompt", "orig_instruction", "question", "instruction", "query", "messages", "conversations", "conversation",
    "contents", "trajectory", "context", "input", "user_prompt", "user_input", "history",
)  # fmt: skip
"""Columns that hold a prompt, the surest first."""
SYSTEMS = ("system", "system_prompt", "system_message")
_INSIDE = ("full_text", "messages")  # of an object: WebGPT's questions, OpenAI's input
_RENDERED = ("question", "instruction", "query", "input")  # may stand beside a prompt that was made from them
_KEPT = frozenset(
    [
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "reasoning_content",
        "thinking",
        "function_call",
    ]
)
_TURN = re.compile(r"(?:\n\n|\A)(Human|Assistant|System):")
_TURN_ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}
_LONGEST_RATER = 80  # characters, as a store keeps them
RATERS = ("rater", "annotator", "judge", "worker")


def read_prompt(fields: Fields) -> Text:
    """The prompt of a row with its system turn; "" where it has none.

    Raises:
        RefusedError: It is no text, or stands in several columns that differ.
    """
    name = fields.first(*PROMPTS)
    for images in ("images", "image", "audio", "videos"):
        if fields.has(images):
            raise RefusedError(f"{images}: klimb reads only text")
    prompt: Text = "" if name is None else _prompt_in(fields, name)
    if name == "instruction" and fields.has("input"):
        prompt = _with_input(prompt, fields.get("input"))
    prompt = _with_history(prompt, fields, name)
    if name is not None:
        _compare_with_others(fields, name, prompt)
    return with_system(prompt, fields)


def _prompt_in(fields: Fields, name: str) -> Text:
    value = fields.get(name)
    if isinstance(value, dict):
        inner = next((key for key in _INSIDE if not is_empty(value.get(key))), None)
        value = value if inner is None else fields.part(name).get(inner)
    return checked_prompt(name, value, fields)


def checked_prompt(name: str, value: Any, fields: Fields | None = None) -> Text:
    """A prompt in one form; a transcript whose last turn is the assistant's to write becomes messages.

    Raises:
        RefusedError: It is no text.
    """
    value = _unfolded(name, value)
    if isinstance(value, str):
        if problem := problem_with(value):
            raise RefusedError(f"{name}: {problem}")
        if value.startswith((HUMAN, HUMAN.strip(), SYSTEM)) and value.rstrip().endswith(ASSISTANT.strip()):
            return transcript(value.rstrip()[: -len(ASSISTANT.strip())])
        return value
    messages = chat(name, value)
    if fields is not None:
        for message, given in zip(messages, value, strict=True):
            part = fields.item(name, given)
            for key in (*_KEPT, "from", "value", "text", "parts", "type", "weight"):
                part.get(key)
            for key in [key for key in message if key not in _KEPT]:
                del message[key]
    return messages


def _unfolded(name: str, value: Any) -> Any:
    try:
        return unfold(value)
    except MessageError as error:
        raise RefusedError(f"{name}: {error}") from error


def _with_input(prompt: Text, more: Any) -> Text:
    if not isinstance(prompt, str) or not isinstance(more, str):
        raise RefusedError(f"input: expected text beside an instruction, got {quote(more)}")
    return f"{prompt}\n{more}"


def _with_history(prompt: Text, fields: Fields, name: str | None) -> Text:
    """LLaMA-Factory's earlier turns: a list of pairs of a question and its answer."""
    if name in (None, "history") or not isinstance(fields.look("history"), list) or not fields.has("history"):
        return prompt
    turns: list[Message] = []
    for pair in fields.get("history"):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RefusedError(f"history: expected pairs of a question and its answer, got {quote(pair)}")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns + as_messages(prompt)


def _compare_with_others(fields: Fields, name: str, prompt: Text) -> None:
    """Refuse a second prompt that says something else; one that is in the first is read."""
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    for other in _RENDERED:
        value = fields.look(other)
        is_judges = name == "orig_instruction" and other == "instruction"  # what Prometheus asks its judge
        if other == name or is_judges or not isinstance(value, str) or not value.strip():
            continue
        if not any(value.strip() in text for text in texts):
            raise RefusedError(
                f"the prompt is in two columns that differ, {name!r} and {other!r}: join what is to be answered "
                "into one column named prompt"
            )
        fields.get(other)
    if name != "context" and isinstance(fields.look("context"), str) and fields.has("context"):
        value = fields.get("context")
        if not any(value.strip() in text for text in texts):
            raise RefusedError(
                f"the column 'context' is not part of {name!r}: join what is to be read and answered in one column "
                "named prompt"
            )


def with_system(prompt: Text, fields: Fields) -> Text:
    """Put a row's system message before its prompt, which becomes a chat."""
    name = fields.first(*SYSTEMS)
    if name is None:
        is_asked = any(system in fields for system in SYSTEMS) and isinstance(prompt, str) and prompt
        return as_messages(prompt) if is_asked else prompt
    system = fields.get(name)
    if not isinstance(system, str):
        raise RefusedError(f"{name}: expected text, got {quote(system)}")
    if problem := problem_with(system):
        raise RefusedError(f"{name}: {problem}")
    messages = as_messages(prompt)
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != system.strip():
            raise RefusedError(f"{name}: differs from the system message that the prompt begins with")
        return messages
    return [{"role": "system", "content": system}, *messages]


def as_messages(prompt: Text) -> list[Message]:
    """A prompt as chat messages: text is what the user says."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}] if prompt else []
    return prompt


def chat(name: str, value: Any) -> list[Message]:
    """Messages of a column.

    Raises:
        RefusedError: It holds no messages.
    """
    if not isinstance(value, list):
        raise RefusedError(f"{name}: {problem_with(value)}")
    try:
        return read_messages(value)
    except MessageError as error:
        raise RefusedError(f"{name}: {error}") from error


def completion(name: str, value: Any) -> str:
    """The text of a completion, which may be one message of the assistant.

    Raises:
        RefusedError: It is something else.
    """
    return answer(name, value)[1]


def answer(name: str, value: Any, fields: Fields | None = None) -> tuple[list[Message], str]:
    """The text of a completion, and the messages before it where it is a whole chat.

    What the answering message has beside its text, such as its reasoning, is named in the row's `fields`.

    Raises:
        RefusedError: It is neither text nor messages that the assistant ends.
    """
    value = [value] if isinstance(value, dict) else _unfolded(name, value)
    if isinstance(value, list) and value:
        *before, last = chat(name, value)
        if last["role"] != "assistant":
            raise RefusedError(
                f"{name}: expected a last message of the assistant, got one of role {last['role']!r}"
            )
        if last.get("tool_calls") or last.get("function_call"):
            raise RefusedError(f"{name}: calls tools ('tool_calls') and has no text to compare")
        if fields is not None:
            for key in sorted(last.keys() - {"role", "content", "name"} - METADATA):
                fields.leave(f"{name}[].{key}")
        value = last["content"]
    else:
        before = []
    if not isinstance(value, str):
        raise RefusedError(f"{name}: expected text or one message, got {quote(value)}")
    if problem := problem_with(value):
        raise RefusedError(f"{name}: {problem}")
    return [{key: item for key, item in message.items() if key in _KEPT} for message in before], value


def transcript(text: str) -> list[Message]:
    """Anthropic's transcripts: turns that begin with Human:, Assistant: or System:.

    Raises:
        RefusedError: Something stands before the first turn.
    """
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise RefusedError(f"expected a transcript that begins with Human:, got {cut(text)!r}")
    return [
        {"role": _TURN_ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def is_transcript(value: Any) -> bool:
    """Whether a text is a transcript with an answer."""
    return isinstance(value, str) and _TURN.match(value) is not None and HUMAN.strip() in value[:400]


def read_rater(fields: Fields) -> str:
    """Who judged, "" where that is not known.

    Raises:
        RefusedError: The name cannot be kept.
    """
    name = fields.first(*RATERS)
    return "" if name is None else checked_rater(fields.get(name))


def checked_rater(value: Any) -> str:
    """A rater's name as text.

    Raises:
        RefusedError: It cannot be kept.
    """
    from klimb.io.show import surrogate_in

    rater = "" if is_empty(value) else str(value)
    if surrogate_in(rater) or "\0" in rater or len(rater) > _LONGEST_RATER:
        raise RefusedError(
            f"rater: expected a name of at most {_LONGEST_RATER} characters, got {quote(rater)}"
        )
    return rater


def one_message(name: str, value: Any) -> Message:
    """One message of a column.

    Raises:
        RefusedError: It is none.
    """
    try:
        return read_message(value)
    except MessageError as error:
        raise RefusedError(f"{name}: {error}") from error
