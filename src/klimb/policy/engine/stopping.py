"""When a completion ends besides at an end token: stop strings, and the tokens before which nothing ends it.

Axes: N completions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from klimb.errors import ArgumentError
from klimb.io.show import Text
from klimb.policy.engine.decoding import TextDecoder

_PARTIAL = "\ufffd"  # what a decoder writes for bytes that are no character yet
_CONTEXT = 4  # tokens before those that are searched, of which the text is a continuation


@dataclass(frozen=True)
class StopRules:
    """When completions may and must end.

    Attributes:
        min_new_tokens: Tokens of a completion before which neither an end token is drawn nor a stop string ends it.
        strings: Texts of which any ends a completion, as soon as it is completed.
    """

    min_new_tokens: int = 0
    strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.min_new_tokens < 0:
            raise ArgumentError(f"min_new_tokens: expected at least 0, got {self.min_new_tokens}")
        if not all(self.strings):
            raise ArgumentError("stop: expected texts of at least one character, got an empty one")


class StopStrings:
    """Finds stop strings in completions as they grow, and cuts their texts there.

    A string counts where the completion's own text has it, wherever token borders and bytes of a character lie; what
    the prompt has is no part of it. Special tokens that are left out of texts are looked for as tokens.

    Args:
        strings: The stop strings, none of them empty.
        decoder: What decodes completions.
        tokenizer: Its tokenizer.
    """

    def __init__(self, strings: Sequence[str], decoder: TextDecoder, tokenizer: Any) -> None:
        self._strings = tuple(strings)
        self._decoder = decoder
        special = sorted(decoder.left_out)
        names = tokenizer.convert_ids_to_tokens(special) if special else []
        self._ids = {token for token, name in zip(special, names, strict=True) if name in self._strings}
        self._num_searched = max((len(string.encode()) for string in strings), default=0) + 1

    @property
    def left_out(self) -> set[int]:
        """Tokens that are no text."""
        return self._decoder.left_out

    def ended(self, rows: Sequence[list[int]], contexts: Sequence[list[int]]) -> list[bool]:
        """Tell which completions the last token ends.

        Args:
            rows: Token ids of each, without those that are left out of texts but for the last, (N,).
            contexts: Token ids of each one's prompt, (N,).
        """
        tails = [row[-self._num_searched :] for row in rows]
        befores = [
            [*context, *row[: len(row) - len(tail)]][-_CONTEXT:]
            for context, row, tail in zip(contexts, rows, tails, strict=True)
        ]
        starts = self._starts(tails, befores, None)
        return [start is not None or row[-1] in self._ids for start, row in zip(starts, rows, strict=True)]

    def cut(
        self, rows: Sequence[list[int]], contexts: Sequence[list[int]], prompts: Sequence[Text] | None = None
    ) -> list[str]:
        """Decode completions that were ended by a stop string, without it and what its last token has after it.

        Args:
            rows: Token ids of each, (N,).
            contexts: Token ids of each one's prompt, (N,).
            prompts: The prompts as they were given, (N,); None where they are plain texts.
        """
        starts = self._starts(rows, contexts, prompts)
        texts = self._decoder(rows, contexts, prompts)
        return [text[:start] for text, start in zip(texts, starts, strict=True)]

    def _starts(
        self, rows: Sequence[list[int]], contexts: Sequence[list[int]], prompts: Sequence[Text] | None
    ) -> list[int | None]:
        """Find where in each text the first string begins that the last token completes; None where it does not."""
        texts = self._decoder(rows, contexts, prompts)
        earlier = self._decoder([row[:-1] for row in rows], contexts, prompts)
        return [
            self._start(text, before.rstrip(_PARTIAL)) for text, before in zip(texts, earlier, strict=True)
        ]

    def _start(self, text: str, before: str) -> int | None:
        found = [text.find(string, max(0, len(before) + 1 - len(string))) for string in self._strings]
        return min((start for start in found if start >= 0), default=None)


class StopSearch:
    """Looks for stop strings in the completions of a batch, token by token.

    Args:
        stops: The stop strings.
        prompts: Token ids of each completion's prompt, (N,).
    """

    def __init__(self, stops: StopStrings, prompts: Sequence[list[int]]) -> None:
        self._stops = stops
        self._prompts = prompts
        self._texts: list[list[int]] = [[] for _ in prompts]

    def add(self, rows: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        """Add the next token of some completions, and tell which of them it ends."""
        longer = [[*self._texts[row], token] for row, token in zip(rows, tokens, strict=True)]
        for row, ids in zip(rows, longer, strict=True):
            if ids[-1] not in self._stops.left_out:
                self._texts[row] = ids
        return self._stops.ended(longer, [self._prompts[row] for row in rows])
