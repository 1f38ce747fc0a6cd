"""Prompts from a file, and which of them each step takes."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from klimb.errors import ConfigError, DataError
from klimb.policy.counted import permutation
from klimb.text import Text


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


def read_prompts(file: Path, column: str = "prompt") -> list[PromptRow]:
    """Read prompts from a JSONL, CSV or Parquet file.

    Args:
        file: Named .jsonl, .csv or .parquet. Blank lines of a JSONL file are passed over.
        column: Where the prompts stand. In a CSV file they are plain text.

    Returns:
        The rows, in the order of the file.

    Raises:
        DataError: The file is missing, of another kind, empty, or a row of it is malformed; the
            message gives the line.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise DataError(
            f"{file}: expected a .jsonl, .csv or .parquet file of prompts, got {file.suffix or file.name!r}"
        )
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    rows = [_row(place, values, column) for place, values in reader(file)]
    if not rows:
        raise DataError(f"{file}: has no prompts")
    names = dict.fromkeys(name for row in rows for name in row.columns)
    return [replace(row, columns={name: row.columns.get(name) for name in names}) for row in rows]


def indices_of_step(step: int, num_prompts: int, prompts_per_step: int, seed: int) -> list[int]:
    """Choose the prompts of a step: each epoch is a shuffle, cut into steps.

    What does not fill a step at an epoch's end is left for the next shuffle, so that no step
    has a prompt twice. The choice depends on the arguments alone; there is no state to save.
    """
    if prompts_per_step > num_prompts:
        raise ConfigError(
            f"prompts_per_step: expected at most the {num_prompts} prompts there are, got {prompts_per_step}"
        )
    epoch, position = divmod(step, num_prompts // prompts_per_step)
    order = permutation(seed=seed, epoch=epoch, count=num_prompts)
    start = position * prompts_per_step
    return order[start : start + prompts_per_step].tolist()


def _read_jsonl(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, line in _text_lines(file):
        if line.strip():
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{place}: not JSON: {error.msg} at column {error.colno}; got {_cut(line)}"
                ) from error
            if not isinstance(values, dict):
                raise DataError(f"{place}: expected a JSON object, got {_cut(line)}")
            yield place, values


def _text_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Lines with their places, decoded one by one so that a broken one can be named."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{file}:{number}"
            try:
                yield place, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{place}: not UTF-8 text: byte {error.start} of the line cannot be read"
                ) from error


def _read_csv(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader((line for _, line in _text_lines(file)), strict=True)
    try:
        for values in reader:
            place = f"{file}:{reader.line_num}"
            if None in values or None in values.values():
                raise DataError(f"{place}: expected {len(reader.fieldnames or [])} fields, as in the header")
            yield place, values
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not CSV: {error}") from error


def _read_parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: not a Parquet file: {error}") from error
    for number, values in enumerate(rows, start=1):
        yield f"{file}, row {number}", values


def _row(place: str, values: dict[str, Any], column: str) -> PromptRow:
    if column not in values:
        raise DataError(
            f"{place}: no column {column!r}; it has {', '.join(map(repr, values))} (choose with --prompt-column)"
        )
    prompt = values[column]
    problem = _problem(prompt)
    if problem:
        raise DataError(f"{place}: {column}: {problem}")
    for name in ("prompts", "completions"):
        if name in values and name != column:
            raise DataError(
                f"{place}: a column may not be named {name!r}, which is what a reward is called with"
            )
    return PromptRow(prompt, {name: value for name, value in values.items() if name != column}, place)


def _problem(prompt: Any) -> str | None:
    """Say what is wrong with a prompt, or None."""
    if isinstance(prompt, str):
        return _text_problem(prompt) or (None if prompt.strip() else "the prompt is empty")
    if not isinstance(prompt, list):
        return f"expected text or a list of messages, got {_cut(repr(prompt))}"
    if not prompt:
        return "the list of messages is empty"
    for message in prompt:
        is_message = isinstance(message, dict) and {"role", "content"} <= message.keys()
        if not (is_message and isinstance(message["role"], str) and isinstance(message["content"], str)):
            return f"expected messages with a text `role` and `content`, got {_cut(repr(message))}"
        if problem := _text_problem(message["content"]):
            return problem
    return None


def _text_problem(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair, {text[error.start]!r}, at character {error.start} is not text"
    return None


def _cut(text: str) -> str:
    stripped = text.strip()
    return stripped if len(stripped) <= 60 else stripped[:60] + "…"
