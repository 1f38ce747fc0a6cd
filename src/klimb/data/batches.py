"""Rows of Parquet and Arrow files, read and validated batch by batch."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from klimb.data.contents import refuse_other_contents
from klimb.data.lines import Row
from klimb.errors import DataError
from klimb.io.show import cut, quote

_BATCH = 1024  # rows of a Parquet file in memory at once, beside the row group that they are of
_ARROW_FILE = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_batches(file: Path) -> Iterator[pyarrow.RecordBatch]:
    """Read a Parquet file, or one in either of Arrow's two formats.

    Raises:
        DataError: It is not what its name says, cut short, damaged, or two columns have one name.
    """
    refuse_other_contents(file)
    if file.suffix.lower() == ".parquet":
        yield from _checked(file, _parquet_batches(file))
    elif _begins_with(file, _ARROW_FILE):
        yield from _checked(file, _file_batches(file))
    else:
        yield from _checked(file, _stream_batches(file))


def is_arrow(file: Path) -> bool:
    """Whether a file is read in batches."""
    return file.suffix.lower() in (".parquet", ".arrow", ".feather")


def _begins_with(file: Path, mark: bytes) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(mark)) == mark
    except OSError:  # reading it reports the error
        return False


def rows_of(
    file: Path, batches: Iterable[pyarrow.RecordBatch], *, names_of_classes: bool = False
) -> Iterator[Row]:
    """Give out the rows of batches, one by one; those that Python has no values for with the reason."""
    number = 0
    for batch in batches:
        classes = _classes(batch.schema) if names_of_classes else {}
        for values, problem in _values(batch):
            for name, names in classes.items():
                code = values.get(name)
                if isinstance(code, int) and 0 <= code < len(names):
                    values[name] = names[code]
            yield Row(f"{file}, row {number + 1}", values, problem, number, number + 1)
            number += 1


def row_of(file: Path, batch: pyarrow.RecordBatch, offset: int, number: int) -> Row:
    """Give out one row of a batch."""
    ((values, problem),) = _values(batch.slice(offset, 1))
    return Row(f"{file}, row {number + 1}", values, problem, number, number + 1)


def _classes(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """The names that stand behind the numbers of columns of classes, as `datasets` notes them in its files."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
    }


def _values(batch: pyarrow.RecordBatch) -> list[tuple[dict[str, Any], str | None]]:
    try:
        return [(values, None) for values in batch.to_pylist()]
    except (ValueError, ArithmeticError, TypeError) as error:
        if batch.num_rows == 1:
            return [({}, f"cannot be read: {cut(str(error))}")]
        rows = (batch.slice(offset, 1) for offset in range(batch.num_rows))
        return [found for row in rows for found in _values(row)]


def _parquet_batches(file: Path) -> Iterator[pyarrow.RecordBatch]:
    with pyarrow.parquet.ParquetFile(file) as parquet:
        promised = parquet.metadata.num_rows
        num_rows = 0
        for batch in parquet.iter_batches(_BATCH):
            num_rows += batch.num_rows
            yield batch
    if num_rows != promised:
        raise DataError(f"{file}: damaged: expected {promised:,} rows, {num_rows:,} could be read")


def _file_batches(file: Path) -> Iterator[pyarrow.RecordBatch]:
    with pyarrow.memory_map(str(file)) as source:
        reader = pyarrow.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _stream_batches(file: Path) -> Iterator[pyarrow.RecordBatch]:
    """Batches that stand in the file, mapped into memory; one that was cut between two of them looks complete."""
    with pyarrow.memory_map(str(file)) as source:
        yield from pyarrow.ipc.open_stream(source)
    with file.open("rb") as stream:
        stream.seek(max(file.stat().st_size - len(_END_OF_STREAM), 0))
        if stream.read() != _END_OF_STREAM:
            raise DataError(f"{file}: cut short: its end is missing")


def _checked(file: Path, batches: Iterator[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
    kind = "a Parquet file" if file.suffix.lower() == ".parquet" else "an Arrow file"
    while True:
        with _explained(file, kind):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)
            names = batch.schema.names  # which may be no text
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{file}: two columns are named {quote(twice)}; rename one")
        yield batch


@contextlib.contextmanager
def _explained(file: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, MemoryError, TypeError) as error:
        raise DataError(f"{file}: not {kind} that can be read: {cut(str(error))}") from error
