"""Prompts from a file, and which of them each step takes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from klimb.errors import ConfigError, DataError
from klimb.policy.counted import permutation
from klimb.rows import Row, read_rows
from klimb.text import Text, problem_with


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
    rows = [_row(row, column) for row in read_rows(file)]
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


def _row(row: Row, column: str) -> PromptRow:
    place, values = row.place, row.values
    if row.problem:
        raise DataError(f"{place}: {row.problem}")
    if column not in values:
        raise DataError(
            f"{place}: no column {column!r}; it has {', '.join(map(repr, values))} (choose with --prompt-column)"
        )
    prompt = values[column]
    if problem := problem_with(prompt):
        raise DataError(f"{place}: {column}: {problem}")
    for name in ("prompts", "completions"):
        if name in values and name != column:
            raise DataError(
                f"{place}: a column may not be named {name!r}, which is what a reward is called with"
            )
    return PromptRow(prompt, {name: value for name, value in values.items() if name != column}, place)
