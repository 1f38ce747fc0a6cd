"""Rows of a JSONL, CSV or Parquet file, or a folder of `datasets`, one by one, each with its place for messages.

Whatever bytes a file has, each of its rows is given out, with the reason where it cannot be read, or the file as a
whole is refused; nothing is passed over but blank lines. One row, or one batch of a Parquet or Arrow file, is in memory
at a time.
"""

from collections.abc import Iterator
from pathlib import Path

from klimb.errors import DataError
from klimb.lines import Row, read_csv, read_jsonl

__all__ = ["KINDS", "Row", "is_text", "read_rows"]

KINDS = (".jsonl", ".csv", ".parquet")


def read_rows(file: Path) -> Iterator[Row]:
    """Read a file row by row; the ones that cannot be read are among them, with the reason.

    Args:
        file: Named .jsonl, .csv or .parquet, or a folder that `datasets.Dataset.save_to_disk` wrote. Blank lines of
            a JSONL or CSV file are passed over.

    Raises:
        DataError: The file is missing, of another kind, or as a whole not what its name says.
    """
    if is_text(file):
        return read_jsonl(file) if file.suffix.lower() == ".jsonl" else read_csv(file)
    from klimb.batches import read_batches, rows_of

    return rows_of(file, read_batches(file))


def is_text(file: Path) -> bool:
    """Whether a file's rows stand in lines.

    Raises:
        DataError: The file is missing, or of another kind.
    """
    if file.is_dir():
        return False
    if file.suffix.lower() not in KINDS:
        raise DataError(f"{file}: expected a .jsonl, .csv or .parquet file, got {file.suffix or file.name!r}")
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    return file.suffix.lower() != ".parquet"
