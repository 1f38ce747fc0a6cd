"""Prompts from a file, and which of them each step takes."""

import functools
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from klimb.core.rng import permutation
from klimb.data.messages import MessageError, read_messages, unfold, with_system_prompt
from klimb.data.objects import HUB, hub_rows, is_place, rows_of
from klimb.data.row_index import stored_rows
from klimb.data.rows import RESERVED, Row, read_rows
from klimb.errors import ConfigError, DataError
from klimb.io.show import Text, null_in, plain, problem_with

_AT_ONCE = 1 << 20  # digests compared together
_MOST_COMPARED = 1000  # repeated prompts that are read again to be sure
_SHOWN = 3  # repeated prompts whose places are told
_BESIDE = ("system", "system_prompt", "system_message", "input", "context", "history")
_NO_TEXT = ("images", "image", "videos", "video", "audio", "audios")


@dataclass(frozen=True)
class PromptRow:
    """One row of a file of prompts.

    Attributes:
        prompt: Plain text, or chat messages.
        columns: The row's other columns, for the reward; every row has those of the whole file,
            None where its line does not.
        place: File and line, for messages.
    """

    prompt: Text
    columns: dict[str, Any]
    place: str


@dataclass(frozen=True)
class Repeats:
    """Prompts that stand in a file more than once.

    Attributes:
        num_rows: Rows whose prompt stands in an earlier one.
        first: Places of the first of them, each with that of the earlier one.
    """

    num_rows: int
    first: list[tuple[str, str]]

    def __str__(self) -> str:
        places = ", ".join(f"{place} as {earlier}" for place, earlier in self.first)
        more = ", …" if self.num_rows > len(self.first) else ""
        return (
            f"{self.num_rows:,} prompts are duplicates of earlier ones, and all are sampled: {places}{more}"
        )


class PromptFile(Sequence[PromptRow]):
    """Prompts that stay in their file and are read when a step takes them.

    In memory is where each of them stands and a digest by which repeats are found, 16 bytes together; all are read and
    checked once at the start. The file must not change while this is used.

    Attributes:
        file: The file.
        repeats: Prompts that stand in it more than once; None where there are none.
        unread: Columns that often are a part of the prompt and are not in this one, and in how many rows they stand.
        num_continued: Prompts that end with a message of the assistant's, which the policy continues.

    Args:
        file: As for `klimb.data.rows.read_rows`. Blank lines are passed over.
        column: Where the prompts stand. In a CSV file they are plain text, or chat messages as JSON.
        system_prompt: First message of prompts that are messages and have none of the system.

    Raises:
        DataError: The file is missing, of another kind, empty, or a row of it is malformed; the message gives the line.
    """

    def __init__(self, file: Path, column: str = "prompt", system_prompt: str | None = None) -> None:
        self.file, self._column, self._system_prompt = file, column, system_prompt
        self._rows = stored_rows(file)
        self._names: dict[str, None] = {}
        self.unread: Counter[str] = Counter()
        self.num_continued = 0
        digests = array("q")
        for row in self._rows.scan():
            checked = _checked(row, column, system_prompt)
            if not checked.columns.keys() <= self._names.keys():
                self._names |= dict.fromkeys(checked.columns)
            digests.append(_digest(checked))
            self.unread.update(_beside(checked))
            self.num_continued += (
                not isinstance(checked.prompt, str) and checked.prompt[-1]["role"] == "assistant"
            )
        if not digests:
            raise DataError(f"{file}: has no prompts")
        self._digests = np.frombuffer(digests, dtype=np.int64)
        self.repeats = self._find_repeats()

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> PromptRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PromptRow]: ...
    def __getitem__(self, index: int | slice) -> PromptRow | list[PromptRow]:
        """Read one row, or some."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._whole(self._rows[range(len(self))[index]])

    def __iter__(self) -> Iterator[PromptRow]:
        """Read all, in their order, one at a time."""
        return map(self._whole, read_rows(self.file))

    def find(self, prompts: Sequence[PromptRow]) -> dict[int, PromptRow]:
        """Find which of some prompts stand in the file: the number of each that does, and a row that has it."""
        wanted = np.array([_digest(row) for row in prompts], dtype=np.int64)
        found: dict[int, PromptRow] = {}
        places = (start + np.flatnonzero(np.isin(part, wanted)) for start, part in self._parts())
        for place in itertools.chain.from_iterable(each.tolist() for each in places):
            row = self[place]
            for number in np.flatnonzero(wanted == self._digests[place]).tolist():
                if row.prompt == prompts[number].prompt:
                    found.setdefault(number, row)
            if len(found) == len(prompts):
                break
        return found

    def _whole(self, row: Row) -> PromptRow:
        checked = _checked(row, self._column, self._system_prompt)
        columns = {name: checked.columns.get(name) for name in self._names}
        return PromptRow(checked.prompt, columns, checked.place)

    def _find_repeats(self) -> Repeats | None:
        """Find rows of equal digests; that the first of them have equal prompts is made sure of by reading both.

        Of ten million prompts two have one digest by chance in one file of 400,000.
        """
        in_order = np.sort(self._digests)
        is_repeated = in_order[1:] == in_order[:-1]
        num_rows = int(np.count_nonzero(is_repeated))
        repeated = np.unique(in_order[1:][is_repeated])
        del in_order, is_repeated
        first: list[tuple[str, str]] = []
        for place, earlier in itertools.islice(self._pairs_of(repeated), _MOST_COMPARED):
            row, before = self[place], self[earlier]
            if row.prompt != before.prompt:
                num_rows -= 1
            elif len(first) < _SHOWN:
                first.append((row.place, before.place))
        return Repeats(num_rows, first) if num_rows else None

    def _pairs_of(self, repeated: np.ndarray) -> Iterator[tuple[int, int]]:
        """Each row whose digest is one of some, in order, but the first of its digest, with that first."""
        first = np.full(len(repeated), -1, dtype=np.int64)
        for start, part in self._parts():
            group = np.searchsorted(repeated, part)
            is_in = np.append(repeated, 0)[group] == part
            is_in &= group < len(repeated)
            places, groups = start + np.flatnonzero(is_in), group[is_in]
            present, at = np.unique(groups, return_index=True)
            is_new = first[present] < 0
            first[present[is_new]] = places[at[is_new]]
            is_later = first[groups] != places
            yield from zip(places[is_later].tolist(), first[groups[is_later]].tolist(), strict=True)

    def _parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """The digests, some at a time, with the place of the first of them."""
        for start in range(0, len(self._digests), _AT_ONCE):
            yield start, self._digests[start : start + _AT_ONCE]


def read_prompts(file: Path, column: str = "prompt", system_prompt: str | None = None) -> list[PromptRow]:
    """Read all prompts of a file into memory.

    Args:
        file: As for `PromptFile`.
        column: Where the prompts stand. In a CSV file they are plain text, or chat messages as JSON.
        system_prompt: First message of prompts that are messages and have none of the system.

    Returns:
        The rows, in the order of the file.

    Raises:
        DataError: The file is missing, of another kind, empty, or a row of it is malformed; the
            message gives the line.
    """
    return list(PromptFile(file, column, system_prompt))


def prompt_rows(argument: str, data: Any, column: str = "prompt") -> list[PromptRow]:
    """Read prompts from a file, or from an object as `klimb.data.objects.rows_of` takes it.

    Raises:
        DataError: A prompt cannot be read; the message names its place.
    """
    if is_place(data) and not str(data).startswith(HUB):
        return read_prompts(Path(data), column)
    rows = hub_rows(str(data)) if is_place(data) else rows_of(argument, data, column)
    found = [_checked(Row(f"{argument}[{index}]", values), column) for index, values in enumerate(rows)]
    if not found:
        raise DataError(f"{argument}: has no prompts")
    names = dict.fromkeys(name for row in found for name in row.columns)
    return [replace(row, columns={name: row.columns.get(name) for name in names}) for row in found]


def require_held_out(held_out: Sequence[PromptRow], trained_on: PromptFile) -> None:
    """Raise unless no prompt of the one is in the other.

    Raises:
        DataError: One is; the message gives both places.
    """
    found = trained_on.find(held_out)
    for number, row in enumerate(held_out):
        if number in found:
            raise DataError(
                f"{row.place}: the prompt is not held out: it is trained on, {found[number].place}; remove one"
            )


def indices_of_step(step: int, num_prompts: int, prompts_per_step: int, seed: int) -> list[int]:
    """Choose the prompts of a step: each epoch is a shuffle, cut into steps.

    Prompts that do not fill a step at an epoch's end are skipped in that epoch, and the next one shuffles all
    prompts again, so that no step has a prompt twice. The choice depends on the arguments alone; there is no state to
    save.
    """
    if prompts_per_step > num_prompts:
        raise ConfigError(
            f"prompts_per_step: expected at most the {num_prompts} prompts there are, got {prompts_per_step}"
        )
    epoch, position = divmod(step, num_prompts // prompts_per_step)
    order = _order(seed, epoch, num_prompts)
    start = position * prompts_per_step
    return order[start : start + prompts_per_step].tolist()


@functools.lru_cache(maxsize=1)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """An epoch's shuffle, kept from step to step: of ten million prompts it takes seconds."""
    order = permutation(seed=seed, epoch=epoch, count=count)
    order.flags.writeable = False
    return order


def _digest(row: PromptRow) -> int:
    try:
        return hash(
            row.prompt if isinstance(row.prompt, str) else json.dumps(row.prompt, sort_keys=True, default=str)
        )
    except RecursionError as error:
        raise DataError(f"{row.place}: a message is nested too deeply to be read; flatten it") from error


def _beside(row: PromptRow) -> list[str]:
    """Columns with text that often is a part of the prompt, and is not in this one."""
    prompt = row.prompt
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    found = {name: row.columns.get(name) for name in _BESIDE}
    not_text = [name for name in _NO_TEXT if row.columns.get(name)]
    return not_text + [
        name
        for name, value in found.items()
        if (isinstance(value, list) and value)
        or (isinstance(value, str) and value.strip() and not any(value.strip() in text for text in texts))
    ]


def _prompt_of(value: Any, where: str) -> Text:
    """A prompt in one form; what stands in its messages and is no text, such as a time, as text.

    Raises:
        DataError: It is neither text nor messages.
    """
    try:
        prompt = unfold(value)
        if isinstance(prompt, list) and prompt:
            prompt = [plain(message) for message in read_messages(prompt)]
    except MessageError as error:
        raise DataError(f"{where}: {error}") from error
    except RecursionError as error:
        raise DataError(f"{where}: a message is nested too deeply to be read; flatten it") from error
    if problem := problem_with(prompt) or null_in(prompt):
        raise DataError(f"{where}: {problem}")
    return prompt


def _checked(row: Row, column: str, system_prompt: str | None = None) -> PromptRow:
    place, values = row.place, row.values
    if row.problem:
        raise DataError(f"{place}: {row.problem}")
    if column not in values:
        raise DataError(
            f"{place}: no column {column!r}; it has {', '.join(map(repr, values))} (choose with --prompt-column)"
        )
    prompt = _prompt_of(values[column], f"{place}: {column}")
    if system_prompt is not None:
        prompt = with_system_prompt(prompt, system_prompt, f"{place}: {column}")
    for name in RESERVED:
        if name in values and name != column:
            raise DataError(
                f"{place}: a column may not be named {name!r}, which is what a reward is called with"
            )
    return PromptRow(prompt, {name: value for name, value in values.items() if name != column}, place)
