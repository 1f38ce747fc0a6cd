"""Rows of files of data, one by one, each with its place for messages.

Whatever bytes a file has, each of its rows is given out, with the reason where it cannot be read, or the file as a
whole is refused; nothing is passed over but blank lines. One row, or one batch of a Parquet or Arrow file, is in memory
at a time; a .json file is as a whole.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from klimb.data.contents import refuse_other_contents
from klimb.data.lines import COMPRESSED, LINES, Row, form_of, open_lines, read_items, read_lines
from klimb.errors import DataError

__all__ = ["KINDS", "RESERVED", "Row", "kind_of", "read_rows"]

KINDS = (*LINES, ".json", ".parquet", ".arrow", ".feather")
"""Endings of files of rows; those of lines and .json may be compressed."""

_OTHERS = tuple(kind for kind in KINDS if kind not in (".jsonl", ".csv", ".parquet"))

_SHOWN = 200  # characters of a name that cannot be that of a file

Kind = Literal["folder", "lines", "items", "batches"]

RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What a reward function is called with besides the columns of a row: no column of prompts may have such a name."""


def read_rows(file: Path, *, names_of_classes: bool = False) -> Iterator[Row]:
    """Read a file row by row; the ones that cannot be read are among them, with the reason.

    Args:
        file: Of one of `KINDS`; or a folder that `datasets.Dataset.save_to_disk` wrote, or a clone of a data set of
            the hub, of one split. Blank lines are passed over.
        names_of_classes: Whether numbers that stand for the names of classes (ClassLabel of `datasets`) are read as
            those names.

    Raises:
        DataError: The file is missing, of another kind, or as a whole not what its name says.
    """
    kind = kind_of(file)
    if kind == "folder":
        from klimb.data.folders import files_of

        return _rows_of_folder(file, files_of(file), names_of_classes=names_of_classes)
    if kind == "lines":
        return _rows_of_lines(file)
    if kind == "items":
        return read_items(file)
    from klimb.data.batches import read_batches, rows_of

    return rows_of(file, read_batches(file), names_of_classes=names_of_classes)


def _rows_of_lines(file: Path) -> Iterator[Row]:
    with open_lines(file) as stream:
        yield from read_lines(file, stream)


def _rows_of_folder(folder: Path, files: list[Path], *, names_of_classes: bool) -> Iterator[Row]:
    from klimb.data.batches import is_arrow, read_batches, rows_of

    if all(is_arrow(file) for file in files):
        batches = (batch for file in files for batch in read_batches(file))
        yield from rows_of(folder, batches, names_of_classes=names_of_classes)
        return
    for file in files:
        yield from read_rows(file, names_of_classes=names_of_classes)


def kind_of(file: Path) -> Kind:
    """How a file is read.

    Raises:
        DataError: The file is missing, or of another kind.
    """
    try:
        if file.is_dir():
            return "folder"
    except OSError as error:  # a name that is too long
        raise DataError(f"{str(file)[:_SHOWN]}…: cannot be accessed: {error.strerror}") from error
    form = form_of(file)
    if form not in KINDS or (form != file.suffix.lower() and form not in (*LINES, ".json")):
        hint = '; put each text on a line as {"prompt": "…"}' if form == ".txt" else ""
        raise DataError(
            f"{file}: expected a .jsonl, .csv or .parquet file, or one of {', '.join(_OTHERS)}, of which those of "
            f"lines and .json may be compressed ({', '.join(COMPRESSED)}), got {file.suffix or file.name!r}{hint}"
        )
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    refuse_other_contents(file)
    return "lines" if form in LINES else "items" if form == ".json" else "batches"
