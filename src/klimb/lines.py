"""Rows of files of lines: JSONL, and CSV, whose rows may take several."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from klimb.errors import DataError
from klimb.text import cut, quote


@dataclass(frozen=True, slots=True)
class Row:
    """What stands in one place of a file.

    Attributes:
        place: File and line, for messages.
        values: The columns; empty where the row cannot be read.
        problem: Why it cannot be read, if so.
        start: The byte at which it begins; of Parquet and Arrow files its number, from 0.
        line: The line on which it begins, from 1; of Parquet and Arrow files its number.
    """

    place: str
    values: dict[str, Any]
    problem: str | None = None
    start: int = 0
    line: int = 0


class _Line(NamedTuple):
    number: int
    start: int
    text: str
    problem: str | None


class _RepeatedKeyError(ValueError):
    """An object has two values under one key, of which all but one would be lost."""


def read_row_at(file: Path, start: int, line: int, names: list[str] | None) -> Row:
    """Read one row of a file of lines.

    Args:
        file: As for `read_rows`.
        start: The byte at which the row begins.
        line: The line that this is.
        names: The header of a CSV file.
    """
    with file.open("rb") as stream:
        stream.seek(start)
        lines = _text_lines(stream, file, line, start)
        rows = _jsonl_rows(file, lines) if names is None else _csv_rows(file, lines, names)
        return next(rows, Row(f"{file}:{line}", {}, "nothing is there any more"))


def read_header(file: Path) -> list[str] | None:
    """Read the names of a CSV file's columns; None of a file that has no header.

    Raises:
        DataError: The header cannot be read.
    """
    if file.suffix.lower() != ".csv":
        return None
    with file.open("rb") as stream:
        return _take_header(file, _Taken(_text_lines(stream, file)))


def parse_json(text: str) -> Any:
    """Parse JSON in which no object has a key twice.

    Raises:
        ValueError: It cannot be parsed; `RecursionError` where it is nested too deep.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise _RepeatedKeyError(f"the key {quote(name)} stands twice in one object")
    return found


def read_jsonl(file: Path) -> Iterator[Row]:
    """Read a file with a JSON object on each line; blank lines are passed over."""
    with file.open("rb") as stream:
        yield from _jsonl_rows(file, _text_lines(stream, file))


def _jsonl_rows(file: Path, lines: Iterable[_Line]) -> Iterator[Row]:
    for line in lines:
        problem, values = line.problem, {}
        if problem is None:
            if not line.text.strip():
                continue
            problem, values = _parse_line(line.text)
        yield Row(f"{file}:{line.number}", values, problem, line.start, line.number)


def _parse_line(text: str) -> tuple[str | None, dict[str, Any]]:
    try:
        values = parse_json(text)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno}; got {cut(text)}", {}
    except _RepeatedKeyError as error:
        return str(error), {}
    except (RecursionError, ValueError) as error:  # nested a thousand deep, a number of a thousand digits
        return f"not JSON that can be read: {error}", {}
    if not isinstance(values, dict):
        return f"expected a JSON object, got {cut(text)}", {}
    return None, values


def _text_lines(stream: BinaryIO, file: Path, number: int = 1, start: int = 0) -> Iterator[_Line]:
    """Lines with their places, decoded one by one so that a broken one can be named."""
    for raw in stream:
        if start == 0:
            _require_utf8(file, raw)
        text, problem = "", None
        try:
            text = raw.decode("utf-8-sig" if start == 0 else "utf-8")
        except UnicodeDecodeError as error:
            text = raw.decode(errors="replace")
            problem = f"not UTF-8 text: byte {error.start} of the line cannot be read"
        yield _Line(number, start, text, problem)
        start += len(raw)
        number += 1


def _require_utf8(file: Path, first: bytes) -> None:
    """Name an encoding that the first bytes show; Latin-1 shows in none, and the lines with its letters are named."""
    encoding = json.detect_encoding(first)
    if encoding not in ("utf-8", "utf-8-sig"):
        raise DataError(f"{file}: {encoding.upper()} text; save it as UTF-8")


class _Taken:
    """Lines for a reader that takes several of them for a record, with what it took since `begin`."""

    def __init__(self, lines: Iterator[_Line]) -> None:
        self._lines = lines
        self.begin()

    def begin(self) -> None:
        self.first: _Line | None = None
        self.last = 0
        self.problem: str | None = None

    def __iter__(self) -> "_Taken":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if self.first is None:
            self.first = line
        self.last = line.number
        self.problem = self.problem or line.problem
        return line.text

    def place(self, file: Path) -> str:
        first = self.last if self.first is None else self.first.number
        return f"{file}:{first}" if first == self.last else f"{file}:{first}-{self.last}"


def read_csv(file: Path) -> Iterator[Row]:
    """Read a CSV file with a header; blank lines are passed over.

    Raises:
        DataError: The header cannot be read, or has a name twice.
    """
    with file.open("rb") as stream:
        lines = _text_lines(stream, file)
        names = _take_header(file, _Taken(lines))
        yield from _csv_rows(file, lines, names)


def _take_header(file: Path, taken: _Taken) -> list[str]:
    for fields, problem in _records(taken):
        if problem:
            raise DataError(f"{taken.place(file)}: the header cannot be read: {problem}")
        if taken.first is not None and taken.first.number != taken.last:
            raise DataError(
                f"{taken.place(file)}: the header runs over several lines: a quote in it is not closed"
            )
        twice = next((name for name in fields if fields.count(name) > 1), None)
        if twice is not None:
            raise DataError(
                f"{taken.place(file)}: the header names the column {quote(twice)} twice; rename one"
            )
        return fields
    return []


def _csv_rows(file: Path, lines: Iterator[_Line], names: list[str]) -> Iterator[Row]:
    taken = _Taken(lines)
    for fields, trouble in _records(taken):
        problem = trouble
        if trouble is None and len(fields) != len(names):
            problem = f"expected {len(names)} fields, as in the header, got {len(fields)}"
        values = {} if problem else dict(zip(names, fields, strict=True))
        first = taken.first
        start, number = (0, 0) if first is None else (first.start, first.number)
        yield Row(taken.place(file), values, problem, start, number)


def _records(taken: _Taken) -> Iterator[tuple[list[str], str | None]]:
    """Records of a CSV file; after one that cannot be read comes what stands on the next line."""
    reader = csv.reader(taken, strict=True)
    while True:
        taken.begin()
        try:
            fields, problem = next(reader), None
        except StopIteration:
            return
        except csv.Error as error:
            fields, problem = [], f"not CSV: {error}"
            if "field larger" in problem:
                problem += "; texts as long go into a .jsonl file"
        problem = taken.problem or problem
        if fields or problem:
            yield fields, problem
