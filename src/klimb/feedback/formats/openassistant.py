"""Open Assistant's trees: a prompt, the answers to it with their ranks, what was said to each of them, and so on."""

from collections.abc import Iterator
from typing import Any

from klimb.feedback.comparison import Comparison
from klimb.feedback.formats.choices import compared
from klimb.feedback.formats.fields import Fields, RefusedError
from klimb.feedback.formats.texts import completion, one_message
from klimb.io.show import Message, quote

_ABOUT_TREES = ("tree_state", "message_tree_id")


def is_tree(fields: Fields) -> bool:
    """Whether a row is a tree."""
    prompt = fields.look("prompt")
    return isinstance(prompt, dict) and "replies" in prompt


def is_message(fields: Fields) -> bool:
    """Whether a row is one message of a tree that stands in many rows."""
    return {"message_tree_id", "parent_id", "text", "role"} <= set(fields)


def read_tree(fields: Fields) -> list[Comparison]:
    """Compare every two ranked answers to the same message; rank 0 is the best."""
    if is_message(fields):
        raise RefusedError(
            "one message of a conversation of Open Assistant; its other messages are in other rows: use the file of "
            "trees (….trees.jsonl.gz), which has a conversation in each row"
        )
    for name in _ABOUT_TREES:
        fields.get(name)
    return [*_compared(fields.get("prompt"), [])]


def _compared(node: Any, before: list[Message]) -> Iterator[Comparison]:
    if not isinstance(node, dict):
        raise RefusedError(f"prompt: expected messages with replies, got {quote(node)}")
    said = one_message("prompt", {"role": node.get("role"), "text": node.get("text")})
    messages = [*before, said]
    replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
    if said["role"] == "user":
        ranked = [
            (reply["rank"], completion("replies", reply.get("text")))
            for reply in replies
            if _is_ranked(reply)
        ]
        ranked.sort(key=lambda one: one[0])
        for place, (rank, text) in enumerate(ranked):
            for later, other in ranked[place + 1 :]:
                if text != other:
                    yield compared(messages, text, other, "tie" if rank == later else "left", "")
    for reply in replies:
        yield from _compared(reply, messages)


def _is_ranked(reply: Any) -> bool:
    return isinstance(reply.get("rank"), int | float) and not isinstance(reply["rank"], bool)
