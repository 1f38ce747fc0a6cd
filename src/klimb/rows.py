"""Rows of a JSONL, CSV or Parquet file, or a folder of `datasets`, one by one, each with its place for messages."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klimb.errors import DataError
from klimb.text import cut

KINDS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """What stands in one place of a file.

    Attributes:
        place: File and line, for messages.
        values: The columns; empty where the row cannot be read.
        problem: Why it cannot be read, if so.
    """

    place: str
    values: dict[str, Any]
    problem: str | None = None


def read_rows(file: Path) -> Iterator[Row]:
    """Read a file row by row; the ones that cannot be read are among them, with the reason.

    Args:
        file: Named .jsonl, .csv or .parquet, or a folder that `datasets.Dataset.save_to_disk` wrote. Blank lines of
            a JSONL file are passed over.

    Raises:
        DataError: The file is missing, of another kind, or as a whole not what its name says.
    """
    if file.is_dir():
        return _read_dataset(file)
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"{file}: expected a .jsonl, .csv or .parquet file, got {file.suffix or file.name!r}")
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    return reader(file)


def _read_jsonl(file: Path) -> Iterator[Row]:
    for place, line in _text_lines(file):
        if isinstance(line, Row):
            yield line
        elif line.strip():
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                problem = f"not JSON: {error.msg} at column {error.colno}; got {cut(line)}"
                yield Row(place, {}, problem)
                continue
            except (
                RecursionError,
                ValueError,
            ) as error:  # nested a thousand deep, a number of a thousand digits
                yield Row(place, {}, f"not JSON that can be read: {error}")
                continue
            is_object = isinstance(values, dict)
            yield Row(place, values if is_object else {}, None if is_object else _no_object(line))


def _no_object(line: str) -> str:
    return f"expected a JSON object, got {cut(line)}"


def _text_lines(file: Path) -> Iterator[tuple[str, str | Row]]:
    """Lines with their places, decoded one by one so that a broken one can be named."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{file}:{number}"
            try:
                yield place, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problem = f"not UTF-8 text: byte {error.start} of the line cannot be read"
                yield place, Row(place, {}, problem)


def _read_csv(file: Path) -> Iterator[Row]:
    problems: list[Row] = []

    def lines() -> Iterator[str]:
        for _, line in _text_lines(file):
            if isinstance(line, Row):
                problems.append(line)
            else:
                yield line

    reader = csv.DictReader(lines(), strict=True)
    try:
        for values in reader:
            yield from problems
            problems.clear()
            place = f"{file}:{reader.line_num}"
            if None in values or None in values.values():
                problem = f"expected {len(reader.fieldnames or [])} fields, as in the header"
                yield Row(place, {}, problem)
            else:
                yield Row(place, values)
    except csv.Error as error:
        yield Row(f"{file}:{reader.line_num}", {}, f"not CSV: {error}")
    yield from problems


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: not a Parquet file: {error}") from error
    for number, values in enumerate(rows, start=1):
        yield Row(f"{file}, row {number}", values)


def _read_dataset(folder: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.ipc

    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        raise DataError(f"{folder}: has several splits; name one of them: {', '.join(splits)}")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [Path(part["filename"]).name for part in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not a folder that datasets' save_to_disk wrote: {error!r}") from error
    number = 0
    for name in names:
        try:
            with pyarrow.memory_map(str(folder / name)) as source:
                for batch in pyarrow.ipc.open_stream(source):
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(f"{folder}, row {number}", values)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{folder / name}: not an Arrow file that can be read: {error}") from error
