"""Prompts (text or chat messages) to model input: applies the chat template and tokenizes.

A chat template is a program of the model's maker; whatever it raises becomes a `DataError` with its words.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateSyntaxError

from klimb.errors import DataError
from klimb.io.show import Message, Text, content_of, cut, quote
from klimb.model.clock import template_at_clock

NO_COLUMNS: Mapping[str, Any] = MappingProxyType({})
"""A row that has nothing beside its prompt."""

_MARK = "\ue0f1\ue0f2"  # of Unicode's private use: shows where a template writes the end of a message
_OPENED = re.compile(r"<(think|thinking|thought|reasoning)>\s*\Z")
_TAKEN = {"add_generation_prompt", "continue_final_message", "conversation", "tokenize", "tools"}


@dataclass(frozen=True)
class TemplateOptions:
    """What a row gives to the chat template beside its messages.

    Attributes:
        tools: JSON schemas of the tools that the model may call; None where there are none.
        variables: Further variables of the template, such as `enable_thinking` or `documents`.
    """

    tools: list[Any] | None = None
    variables: dict[str, Any] = field(default_factory=dict)


def template_options(columns: Mapping[str, Any]) -> TemplateOptions:
    """Read a row's columns `tools` and `chat_template_kwargs`, each as it is or as JSON, as TRL does.

    Raises:
        DataError: One of them is something else.
    """
    return TemplateOptions(_tools(columns.get("tools")), _variables(columns.get("chat_template_kwargs")))


def encode(tokenizer: Any, prompt: Text, columns: Mapping[str, Any] = NO_COLUMNS) -> list[int]:
    """Tokenise a prompt as the model expects it.

    Plain text is taken as it is, with the special tokens that the tokenizer puts before a text.
    Messages go through the model's chat template, which has put them there.

    Args:
        tokenizer: The model's.
        prompt: Text, or messages.
        columns: The row's other columns, of which the chat template is given `tools` and `chat_template_kwargs`.

    Raises:
        DataError: The model has no chat template, or the template refuses the messages.
    """
    if isinstance(prompt, str):
        return tokenize(tokenizer, prompt)
    return tokenize(tokenizer, render(tokenizer, prompt, columns), add_special_tokens=False)


def tokenize(tokenizer: Any, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Tokenise a text; where text and tokenizer both put the token at the beginning (BOS), it stands there once."""
    ids = (tokenizer(text) if add_special_tokens else tokenizer(text, add_special_tokens=False)).input_ids
    begin = getattr(tokenizer, "bos_token_id", None)
    is_twice = add_special_tokens and begin is not None and ids[:2] == [begin, begin]
    return ids[1:] if is_twice else ids


def render(tokenizer: Any, prompt: Text, columns: Mapping[str, Any] = NO_COLUMNS) -> str:
    """Write a prompt as the text that the model reads.

    Plain text is taken as it is. Messages go through the model's chat template, ending where the assistant is to
    speak. If the last message is the assistant's own, it is continued: the text ends with that message as it stands,
    also where the template would strip white space from its end.

    Args:
        tokenizer: The model's.
        prompt: Text, or messages.
        columns: The row's other columns.

    Raises:
        DataError: The model has no chat template, or the template refuses the messages.
    """
    if isinstance(prompt, str):
        return prompt
    options = template_options(columns)
    if prompt[-1]["role"] != "assistant":
        return _apply(tokenizer, prompt, options, add_generation_prompt=True)
    if prompt[-1].get("tool_calls"):
        raise DataError(
            "the last message calls tools and no result follows, so there is nothing to continue: add a message of "
            "the role tool, or remove the call"
        )
    return _continued(tokenizer, prompt, options)


def render_whole(tokenizer: Any, messages: list[Message], columns: Mapping[str, Any] = NO_COLUMNS) -> str:
    """Write a whole conversation, the assistant's answer included, as the template writes it.

    Raises:
        DataError: The tokenizer has no chat template, or the template refuses the messages.
    """
    return _apply(tokenizer, messages, template_options(columns))


def conversation(prompt: Text, completion: Text, opened: str = "") -> list[Message]:
    """Put a prompt and its completion together as messages, as a chat template is to write them.

    What continues an assistant's message is one turn with it. Reasoning whose opening tag stands in the prompt, because
    the template writes it there, gets the tag back.

    Args:
        prompt: Messages, or text, which is what a user says; "" where there is none.
        completion: The completion's text, or its messages.
        opened: What the prompt's last characters opened of the assistant's turn, such as a tag, as `opening` gives it.
    """
    messages: list[Message] = prompt if isinstance(prompt, list) else _said("user", prompt) if prompt else []
    answer = completion if isinstance(completion, list) else _said("assistant", completion)
    first = answer[0]
    if first["role"] != "assistant":
        return [*messages, *answer]
    content = content_of(first)
    if messages and messages[-1]["role"] == "assistant":
        joined = messages[-1] | first | {"content": content_of(messages[-1]) + content}
        return [*messages[:-1], joined, *answer[1:]]
    closed_at = content.find("</think>")
    if not opened and closed_at >= 0 and "<think>" not in content[:closed_at]:
        opened = "<think>\n"
    if opened and not content.lstrip().startswith(opened.rstrip()):
        first = first | {"content": opened + content}
    return [*messages, first, *answer[1:]]


def opening(prompt: Text, rendered: str) -> str:
    r"""Find what the end of a rendered prompt opens of the assistant's turn: `<think>\n`, or "" where it is nothing."""
    if isinstance(prompt, str) or prompt[-1]["role"] == "assistant":
        return ""
    found = _OPENED.search(rendered)
    if found is None or content_of(prompt[-1]).rstrip().endswith(found.group().rstrip()):
        return ""
    return found.group()


def leader(tokenizer: Any) -> str:
    """Find the white space that a chat template writes between the assistant's header and what it says.

    A completion begins with it, and it is the template's, not part of the message: Llama 2 writes "[/INST] answer".
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return ""
    turns: list[Message] = [*_said("user", "?"), *_said("assistant", _MARK)]
    try:
        before = _apply(tokenizer, turns[:1], TemplateOptions(), add_generation_prompt=True)
        whole = _apply(tokenizer, turns, TemplateOptions())
    except DataError:  # rendering a prompt of the data reports it
        return ""
    between = whole[len(before) :].partition(_MARK)[0] if whole.startswith(before) else ""
    return between if _MARK in whole and between.isspace() else ""


def supports_tools(tokenizer: Any) -> bool:
    """Whether the chat template makes anything of tools."""
    template = getattr(tokenizer, "chat_template", None)
    texts = template.values() if isinstance(template, dict) else [template or ""]
    return any(re.search(r"\btools\b", text) for text in texts)


def _said(role: str, content: str) -> list[Message]:
    return [{"role": role, "content": content}]


def _continued(tokenizer: Any, prompt: list[Message], options: TemplateOptions) -> str:
    """Render messages up to the end of the last one, which is the assistant's and is continued.

    A template may change that message, because it takes it for a whole turn: it removes reasoning, or puts an empty
    one before an open tag. The message then follows the header of a new turn.
    """
    *before, last = prompt
    content = content_of(last)
    if content.strip():
        marked = [*before, last | {"content": content + _MARK}]
        head, mark, _ = _apply(tokenizer, marked, options).rpartition(_MARK)
        if mark and head.endswith(content.lstrip()) and not _closes_what_is_open(head, content):
            return head
    header = _apply(tokenizer, before, options, add_generation_prompt=True)
    if header == _apply(tokenizer, before, options):
        raise DataError(
            "the chat template changes the assistant's last message, which is to be continued, and writes no header "
            f"for a new turn: shorten that message, or remove it: {cut(content)!r}"
        )
    opened = _OPENED.search(header)
    if opened is not None and content.lstrip().startswith(opened.group().rstrip()):
        header = header[: opened.start()]
    return header + content


def _closes_what_is_open(head: str, content: str) -> bool:
    """Whether a template has put empty reasoning before a message that has opened its own."""
    is_open = "<think>" in content and "</think>" not in content
    return is_open and head[: -len(content.lstrip())].rstrip().endswith("</think>")


def _apply(tokenizer: Any, messages: list[Message], options: TemplateOptions, **how: Any) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError(
            "the prompt is a list of messages but the model's tokenizer has no chat template; "
            "use plain strings, or a model tuned for chat"
        )
    given = [_clean(message) for message in messages]
    variables = dict(options.variables)
    name = variables.pop("chat_template", None)
    try:
        return tokenizer.apply_chat_template(
            given,
            chat_template=template_at_clock(tokenizer, name, options.tools),
            tokenize=False,
            tools=options.tools,
            **variables,
            **how,
        )
    except Exception as error:  # a template is a program of the model's maker and raises its own errors
        raise DataError(_refusal(error, messages)) from error


def _refusal(error: Exception, messages: Sequence[Message]) -> str:
    """What a template raised, and what to do."""
    said, roles = str(error).strip(), [message["role"] for message in messages]
    if isinstance(error, TemplateSyntaxError):
        return f"the model's chat template is broken at its line {error.lineno}: {said}; fix it in the model's folder"
    if type(error).__name__ not in ("TemplateError", "ValueError"):
        said = f"{type(error).__name__}: {said}"
    words = f"the model's chat template refuses the messages: {said or type(error).__name__}"
    if "system" in roles and "system" in said.lower():
        return f"{words}; move the system message to the beginning of the first user message"
    if "altern" in said.lower():
        return f"{words}; its roles are {', '.join(roles)}: join messages of one role that follow each other"
    return f"{words}; its roles are {', '.join(roles)}"


def _clean(message: Message) -> Message:
    """A message as templates expect it: no key without a value, as `datasets` adds them, and text as one string."""
    kept = {key: _without_nulls(value) for key, value in message.items() if value is not None}
    if isinstance(kept.get("content"), list):
        kept["content"] = content_of(message)
    if isinstance(kept.get("tool_calls"), list):
        if kept["tool_calls"]:
            kept["tool_calls"] = [_with_arguments(call) for call in kept["tool_calls"]]
        else:
            del kept["tool_calls"]
    return kept


def _with_arguments(call: Any) -> Any:
    """A tool call whose arguments are an object, as templates expect them, not JSON, as services write them."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:  # what a model has written may be anything, and the template may take text
        return call
    return call | {"function": function | {"arguments": arguments}} if isinstance(arguments, dict) else call


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _tools(value: Any) -> list[Any] | None:
    tools = _decoded("tools", value)
    if tools is None or tools == []:
        return None
    expected = "tools: expected a list of JSON schemas, which the chat template is given"
    if not isinstance(tools, list):
        raise DataError(
            f"{expected}, got {quote(tools)}; give the column another name if it is something else"
        )
    found = [_decoded("tools", tool) for tool in tools]
    for tool in found:
        if not isinstance(tool, dict):
            raise DataError(f"{expected}, got {quote(tool)} in it; rename the column if it is something else")
    return found if isinstance(value, str) else [_without_nulls(tool) for tool in found]


def _variables(value: Any) -> dict[str, Any]:
    variables = _decoded("chat_template_kwargs", value)
    if variables is None:
        return {}
    if not isinstance(variables, dict) or not all(isinstance(name, str) for name in variables):
        raise DataError(
            f"chat_template_kwargs: expected an object of the template's variables, got {quote(variables)}"
        )
    if taken := sorted(variables.keys() & _TAKEN):
        raise DataError(f"chat_template_kwargs: {taken[0]} is set by klimb; remove it")
    return {name: part for name, part in variables.items() if part is not None}


def _decoded(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: expected JSON where it is text, got {cut(value)!r}: {error}") from error
