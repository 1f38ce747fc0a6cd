"""Rows from Python objects: lists, data sets, data frames."""

import inspect
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from klimb.errors import DataError, MissingExtraError
from klimb.io.show import plain, quote

HUB = "hf:"
"""What the name of a data set on the Hugging Face hub begins with."""


def is_place(data: Any) -> bool:
    """Whether something names a file, a folder or a data set of the hub, instead of holding rows itself."""
    return isinstance(data, str | os.PathLike)


def rows_of(argument: str, data: Any, column: str = "prompt") -> Iterator[dict[str, Any]]:
    """Give the rows of an object, each a dictionary.

    Args:
        argument: Its name, for messages.
        data: A list (or another iterable that ends) of texts, of conversations or of dictionaries, a
            `datasets.Dataset`, a pandas or polars table, or a mapping from columns to lists of equal length.
        column: Where a text or a conversation stands that comes without a dictionary.

    Raises:
        DataError: It is none of these; the message says what it is, and what to give.
    """
    for index, row in enumerate(_items(argument, data, column)):
        if isinstance(row, Mapping):
            yield {str(name): value for name, value in row.items()}
        elif isinstance(row, str) or (isinstance(row, Sequence) and not isinstance(row, bytes)):
            yield {column: row}
        else:
            raise DataError(
                f"{argument}[{index}]: expected a text, a list of messages or a dictionary, got {quote(row)}"
            )


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as a .jsonl file; what JSON has no form for, such as a time, becomes text."""
    with file.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(plain(row)) + "\n")


def hub_rows(name: str) -> Iterator[dict[str, Any]]:
    """Give the rows of a data set of the Hugging Face hub.

    Args:
        name: `hf:org/name:split`, or `hf:org/name/config:split`; the split is train where none is named.

    Raises:
        DataError: It cannot be loaded; the message has the reason.
        MissingExtraError: The library `datasets` is not installed.
    """
    place, _, split = name.removeprefix(HUB).partition(":")
    parts = place.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"{name}: expected hf:org/name:split or hf:org/name/config:split")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"{name}: needs the library datasets: pip install 'klimb[hub]'") from error
    try:
        found: Any = datasets.load_dataset("/".join(parts[:2]), *parts[2:], split=split or "train")
    except Exception as error:  # the library raises many kinds, those of HTTP clients among them
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: cannot be loaded: {type(error).__name__}: {reason}") from error
    return rows_of(name, found)


def _items(argument: str, data: Any, column: str) -> Iterable[Any]:
    if isinstance(data, bytes | bytearray) or inspect.iscoroutine(data) or hasattr(data, "__aiter__"):
        raise DataError(
            f"{argument}: expected a list of texts, of messages or of dictionaries, got {quote(data)}"
        )
    if isinstance(data, Mapping):
        return _of_mapping(argument, data)
    if hasattr(data, "to_dicts"):  # polars
        return data.to_dicts()
    if hasattr(data, "columns") and hasattr(data, "to_dict"):  # pandas
        return data.to_dict("records")
    if hasattr(data, "tolist"):  # NumPy, a pandas series
        data = data.tolist()
    if not isinstance(data, Iterable):
        raise DataError(
            f"{argument}: expected a list of texts, of messages or of dictionaries, got {quote(data)}"
        )
    if isinstance(data, list | tuple) and data and all(map(_is_message, data)):
        raise DataError(
            f"{argument}: got the messages of one conversation; give a list of conversations: [[…], […]]"
            f", or dictionaries with a column {column!r}"
        )
    return data


def _of_mapping(argument: str, data: Mapping[Any, Any]) -> Iterable[Any]:
    columns = list(data)
    if columns and all(hasattr(data[name], "features") for name in columns):  # a DatasetDict
        raise DataError(
            f"{argument}: has several splits; give one of them, such as data[{str(columns[0])!r}]"
        )
    values = [data[name] for name in columns]
    are_lists = columns and all(
        isinstance(value, Sequence) and not isinstance(value, str | bytes) for value in values
    )
    if not are_lists:
        raise DataError(f"{argument}: got one dictionary; give a list of them, or a list for each column")
    lengths = {str(name): len(value) for name, value in zip(columns, values, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{argument}: columns have unequal lengths: {lengths}")
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and {"role", "content"} <= value.keys() and "prompt" not in value
