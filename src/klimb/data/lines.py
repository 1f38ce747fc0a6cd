"""Rows of files of text: JSONL, CSV and TSV, whose rows may take several lines, and lists in JSON."""

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from klimb.errors import DataError
from klimb.io.show import cut, quote

LINES = (".jsonl", ".ndjson", ".csv", ".tsv")
"""Endings of files whose rows stand in lines."""
COMPRESSED = (".gz", ".zst")
"""What may stand behind these and behind .json."""
_TABLES = (".csv", ".tsv")


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


class Header(NamedTuple):
    """The first line of a CSV or TSV file.

    Attributes:
        names: Of the columns.
        delimiter: What stands between two fields.
    """

    names: list[str]
    delimiter: str


def form_of(file: Path) -> str:
    """A file's ending, without that of its compression."""
    suffix = file.suffix.lower()
    return Path(file.stem).suffix.lower() if suffix in COMPRESSED else suffix


@contextlib.contextmanager
def open_lines(file: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file for reading, decompressed where it is compressed.

    Raises:
        DataError: It is damaged, or not compressed as its name says.
    """
    suffix = file.suffix.lower()
    try:
        if suffix == ".gz":
            with gzip.open(file, "rb") as stream:
                yield stream
        elif suffix == ".zst":
            import pyarrow

            with pyarrow.input_stream(str(file), compression="zstd") as content:
                yield io.BufferedReader(content)
        else:
            with file.open("rb") as stream:
                yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: not a whole gzip file: {error}") from error
    except OSError as error:
        if suffix not in COMPRESSED:
            raise
        raise DataError(f"{file}: not a whole {suffix} file: {cut(str(error))}") from error


def read_lines(file: Path, stream: io.BufferedIOBase) -> Iterator[Row]:
    """Read the rows of a file of lines; blank lines are passed over.

    Args:
        file: Its name, by whose ending it is read.
        stream: Its content.

    Raises:
        DataError: The header of a CSV file cannot be read, or has a name twice.
    """
    lines = _text_lines(stream, file)
    if form_of(file) in _TABLES:
        header = _take_header(file, _Taken(lines))
        return _csv_rows(file, lines, header)
    return _jsonl_rows(file, lines)


def read_row_at(file: Path, stream: io.BufferedIOBase, start: int, line: int, header: Header | None) -> Row:
    """Read one row of a file of lines.

    Args:
        file: Its name.
        stream: Its content.
        start: The byte at which the row begins.
        line: The line that this is.
        header: That of a CSV file.
    """
    stream.seek(start)
    lines = _text_lines(stream, file, line, start)
    rows = _jsonl_rows(file, lines) if header is None else _csv_rows(file, lines, header)
    return next(rows, Row(f"{file}:{line}", {}, "nothing is there any more"))


def read_header(file: Path, stream: io.BufferedIOBase) -> Header | None:
    """Read the names of a CSV file's columns; None of a file that has no header.

    Raises:
        DataError: The header cannot be read.
    """
    if form_of(file) not in _TABLES:
        return None
    return _take_header(file, _Taken(_text_lines(stream, file)))


def read_items(file: Path) -> Iterator[Row]:
    """Read a .json file: a list of objects, or an object with one list of them; or JSON Lines under that name.

    Raises:
        DataError: It is something else.
    """
    with open_lines(file) as stream:
        content = stream.read()
    encoding = json.detect_encoding(content[:4])
    if encoding not in ("utf-8", "utf-8-sig"):
        raise DataError(f"{file}: {encoding.upper()} text; save it as UTF-8")
    try:
        items = parse_json(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        lines = content.splitlines()
        if len(lines) > 1 and _parse_line(lines[0].decode("utf-8-sig", errors="replace"))[0] is None:
            yield from _jsonl_rows(file, _text_lines(io.BytesIO(content), file))
            return
        raise DataError(f"{file}: not JSON: {error}") from error
    if isinstance(items, dict):
        items = _list_in(file, items)
    if not isinstance(items, list):
        raise DataError(f"{file}: expected a list of objects, got {quote(items)}")
    for number, item in enumerate(items, start=1):
        if isinstance(item, dict):
            yield Row(f"{file}, item {number}", item, line=number)
        else:
            yield Row(f"{file}, item {number}", {}, f"expected an object, got {quote(item)}", line=number)


def _list_in(file: Path, content: dict[str, Any]) -> list[Any]:
    """The only list of objects in an object."""
    lists = [
        key
        for key, value in content.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    if len(lists) == 1 and all(not isinstance(content[key], list) for key in content if key != lists[0]):
        return content[lists[0]]
    if len(lists) > 1:
        raise DataError(
            f"{file}: expected a list of objects, got several lists; save one of them as a file of its own: "
            f"{', '.join(map(quote, lists))}"
        )
    raise DataError(
        f"{file}: expected a list of objects, got an object with {', '.join(map(quote, content)) or 'nothing'}"
    )


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
        raise _RepeatedKeyError(f"the key {quote(name)} occurs twice in one object")
    return found


def _jsonl_rows(file: Path, lines: Iterable[_Line]) -> Iterator[Row]:
    for line in lines:
        problem, values = line.problem, {}
        if problem is None:
            if not line.text.strip():
                continue
            problem, values = _parse_line(line.text)
            if line.start == 0 and problem and _begins_list(line.text):
                raise DataError(f"{file}: one list in JSON rather than an object on each line: name it .json")
        yield Row(f"{file}:{line.number}", values, problem, line.start, line.number)


def _begins_list(text: str) -> bool:
    """Whether a line begins a list of objects, alone or with all of it."""
    text = text.strip()
    return text == "[" or text.startswith("[{")


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


def _text_lines(stream: io.BufferedIOBase, file: Path, number: int = 1, start: int = 0) -> Iterator[_Line]:
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


def _take_header(file: Path, taken: _Taken) -> Header:
    delimiter = "\t" if form_of(file) == ".tsv" else ","
    for fields, problem in _records(taken, delimiter):
        if delimiter == "," and not problem and len(fields) == 1 and taken.first is not None:
            other = next(
                (mark for mark in ";\t" if mark in fields[0]), None
            )  # as Excel writes it in much of Europe
            if other is not None:
                return _header_of(file, taken, next(csv.reader([taken.first.text], delimiter=other)), other)
        if problem:
            raise DataError(f"{taken.place(file)}: the header cannot be read: {problem}")
        if taken.first is not None and taken.first.number != taken.last:
            raise DataError(
                f"{taken.place(file)}: the header runs over several lines: a quote in it is not closed"
            )
        return _header_of(file, taken, fields, delimiter)
    return Header([], delimiter)


def _header_of(file: Path, taken: _Taken, names: list[str], delimiter: str) -> Header:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{taken.place(file)}: the header names the column {quote(twice)} twice; rename one")
    return Header(names, delimiter)


def _csv_rows(file: Path, lines: Iterator[_Line], header: Header) -> Iterator[Row]:
    taken, names = _Taken(lines), header.names
    for fields, trouble in _records(taken, header.delimiter):
        problem = trouble
        if trouble is None and len(fields) != len(names):
            problem = f"expected {len(names)} fields, as in the header, got {len(fields)}"
        values = {} if problem else dict(zip(names, fields, strict=True))
        first = taken.first
        start, number = (0, 0) if first is None else (first.start, first.number)
        yield Row(taken.place(file), values, problem, start, number)


def _records(taken: _Taken, delimiter: str) -> Iterator[tuple[list[str], str | None]]:
    """Records of a CSV file; after one that cannot be read comes what stands on the next line."""
    reader = csv.reader(taken, strict=True, delimiter=delimiter)
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
