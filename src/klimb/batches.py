"""Rows of Parquet files and of folders that `datasets` wrote, batch by batch, and checked before they are believed."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from klimb.errors import DataError
from klimb.lines import Row
from klimb.text import cut, quote

_BATCH = 1024  # rows of a Parquet file in memory at once, beside the row group that they are of
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_batches(file: Path) -> Iterator[pyarrow.RecordBatch]:
    """Read a Parquet file, or a folder that `datasets.Dataset.save_to_disk` wrote.

    Raises:
        DataError: It is not what its name says, cut short, damaged, or two columns have one name.
    """
    if file.is_dir():
        for part in arrow_files(file):
            yield from _checked(part, _stream_batches(part))
    else:
        yield from _checked(file, _parquet_batches(file))


def arrow_files(folder: Path) -> list[Path]:
    """Find the files of a folder that `datasets` wrote, in their order.

    Raises:
        DataError: It is not such a folder, has several splits, or names files that are not in it.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        raise DataError(f"{folder}: has several splits; name one of them: {', '.join(splits)}")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [part["filename"] for part in state["_data_files"]]
        has_index = bool(state.get("_indices_data_files"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{folder}: not a folder that datasets' save_to_disk wrote: {cut(repr(error))}"
        ) from error
    if has_index:
        raise DataError(
            f"{folder}: holds a selection of its rows as an old version of datasets wrote it; "
            "load it with datasets and save it again"
        )
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise DataError(
                f"{folder / 'state.json'}: names {quote(name)}, which is not a file in its folder"
            )
    return [folder / name for name in names]


def rows_of(file: Path, batches: Iterable[pyarrow.RecordBatch]) -> Iterator[Row]:
    """Give out the rows of batches, one by one; those that Python has no values for with the reason."""
    number = 0
    for batch in batches:
        for values, problem in _values(batch):
            yield Row(f"{file}, row {number + 1}", values, problem, number, number + 1)
            number += 1


def row_of(file: Path, batch: pyarrow.RecordBatch, offset: int, number: int) -> Row:
    """Give out one row of a batch."""
    ((values, problem),) = _values(batch.slice(offset, 1))
    return Row(f"{file}, row {number + 1}", values, problem, number, number + 1)


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
        raise DataError(f"{file}: damaged: {promised:,} rows were promised, {num_rows:,} could be read")


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
