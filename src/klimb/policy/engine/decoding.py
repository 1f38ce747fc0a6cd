"""From a completion's tokens to its text: what continues the prompt, without the tokens that are no text.

Axes: N completions.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from klimb.errors import DataError
from klimb.io.show import Message, Text
from klimb.model import chat

Skipped = Literal["chat", "all"]
"""Which special tokens are left out of a text.

`chat`: those that end, begin or pad a text, and those that the chat template writes around turns. `all`: every one.
"""

_CONTEXT = 4  # tokens of a prompt that its completion is decoded after
_NAMED = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
_TAG = re.compile(r"<(/?)([\w-]+)>")


class TextDecoder:
    """Decodes completions as texts that continue their prompts.

    A text is decode(prompt + completion) without decode(prompt): decoders of the SentencePiece kind (Llama 2, Mistral
    v0.1) strip the first space of whatever they decode, which in a completion is a space between two words.

    Attributes:
        left_out: Ids of the tokens that are no text.
        tags: Special tokens in pairs such as `<think>` and `</think>`, which `chat` keeps and `all` leaves out.

    Args:
        tokenizer: The policy's.
        skipped: Which special tokens are left out.
        end_ids: Every token that ends a completion.
    """

    def __init__(self, tokenizer: Any, skipped: Skipped = "chat", end_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        special = _special_ids(tokenizer)
        self.tags = _tags(tokenizer, special)
        self.left_out = special
        if skipped == "chat" and special:
            of_template = _template_ids(tokenizer) - self.tags.keys()
            self.left_out = special & (_named_ids(tokenizer) | set(end_ids) | of_template)
        self._special = special
        self._leader = chat.leader(tokenizer)
        self._letter = self._find_letter()

    def __call__(
        self, rows: Sequence[list[int]], contexts: Sequence[list[int]], prompts: Sequence[Text] | None = None
    ) -> list[str]:
        """Decode completions.

        Args:
            rows: Token ids of each, (N,).
            contexts: Token ids of each one's prompt, (N,).
            prompts: The prompts as they were given, (N,); None where they are plain texts.
        """
        kept = [[token for token in row if token not in self.left_out] for row in rows]
        befores = [self._before(context) for context in contexts]
        prefixes = dict(zip(befores, self._decode([list(ids) for ids in befores]), strict=True))
        wholes = self._decode([[*before, *row] for before, row in zip(befores, kept, strict=True)])
        texts = [
            whole[len(prefixes[before]) :] if whole.startswith(prefixes[before]) else None
            for before, whole in zip(befores, wholes, strict=True)
        ]
        # Where the decoder writes the prompt otherwise once more follows, the completion is decoded alone.
        alone = iter(self._decode([row for row, text in zip(kept, texts, strict=True) if text is None]))
        found = [next(alone) if text is None else text for text in texts]
        if not self._leader or prompts is None:
            return found
        return [
            text.removeprefix(self._leader) if _is_answered(prompt) else text
            for text, prompt in zip(found, prompts, strict=True)
        ]

    def _decode(self, rows: list[list[int]]) -> list[str]:
        if not rows:
            return []
        return self._tokenizer.batch_decode(
            rows, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _before(self, context: list[int]) -> tuple[int, ...]:
        """The prompt's last tokens that are text, or what stands for them."""
        last = context[-_CONTEXT:]
        for place in range(len(last) - 1, -1, -1):
            if last[place] in self._special:
                last = last[place + 1 :]
                break
        return tuple(last) if last else self._letter

    def _find_letter(self) -> tuple[int, ...]:
        """What a completion is decoded after where a special token stands before it: nothing, or a letter.

        Some tokenizers put a space before the word that follows a special token, as before a text's first; the
        decoder is right to strip it. Others do not, and a space is then one that was written.
        """
        marker = next(iter(sorted(self._special)), None)
        if marker is None:
            return ()
        (written,) = self._decode([[marker]])
        alone, after = (
            self._tokenizer(text, add_special_tokens=False).input_ids for text in ("a", f"{written}a")
        )
        is_same = after[1:] == alone or after[:1] != [marker] or self._special & set(alone)
        return () if is_same else tuple(alone)


def _is_answered(prompt: Text) -> bool:
    return not isinstance(prompt, str) and prompt[-1]["role"] != "assistant"


def _special_ids(tokenizer: Any) -> set[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(getattr(tokenizer, "all_special_ids", ())) | {
        token for token, content in added.items() if content.special
    }


def _named_ids(tokenizer: Any) -> set[int]:
    ids = {getattr(tokenizer, f"{name}_token_id", None) for name in _NAMED}
    return {token for token in ids if token is not None}


def _tags(tokenizer: Any, special: set[int]) -> dict[int, str]:
    """Special tokens that come in pairs, `<name>` and `</name>`: they are about a text's content, not about turns."""
    if not special:
        return {}
    ids = sorted(special - _named_ids(tokenizer))
    names = dict(zip(ids, map(str, tokenizer.convert_ids_to_tokens(ids)), strict=True))
    return {
        token: name
        for token, name in names.items()
        if (found := _TAG.fullmatch(name))
        and {f"<{found.group(2)}>", f"</{found.group(2)}>"} <= set(names.values())
    }


def _template_ids(tokenizer: Any) -> set[int]:
    """The tokens that a chat template writes around turns."""
    if getattr(tokenizer, "chat_template", None) is None:
        return set()
    turns: list[Message] = [
        {"role": role, "content": "?"} for role in ("system", "user", "assistant", "user")
    ]
    for messages in (turns, turns[1:]):  # some know no system
        try:
            text = chat.render(tokenizer, messages)
        except DataError:  # rendering a prompt of the data reports it
            continue
        return set(tokenizer(text, add_special_tokens=False).input_ids)
    return set()
