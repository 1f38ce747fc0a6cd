"""Rows as tables: CSV, Parquet, and folders of `datasets`."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from klimb.data.messages import MessageError, unfold
from klimb.errors import DataError
from klimb.io.atomic import whole_folder, write_file
from klimb.io.show import cut

_OF_A_DATASET = re.compile(r"data-\d+-of-\d+\.arrow|state\.json|dataset_info\.json|cache-.*\.arrow")


def write_csv(rows: list[dict[str, Any]], file: Path) -> None:
    """Write rows as a CSV file in UTF-8, messages as JSON; a field with a comma, quote or line end is quoted.

    Raises:
        DataError: A text would be read as messages.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(rows[0])
    for number, row in enumerate(rows, start=1):
        writer.writerow([_field(value, f"{file}: row {number}, {name}") for name, value in row.items()])
    write_file(file, stream.getvalue())


def _field(value: Any, place: str) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        return "" if value is None else repr(value)
    try:
        is_text = unfold(value) is value
    except MessageError:
        is_text = False
    if not is_text:
        raise DataError(
            f"{place}: plain text that would be read as chat messages; export to a .jsonl file: {cut(value)}"
        )
    return value


def _strange_in(folder: Path) -> str | None:
    """The name of something in a folder that `datasets` did not write there."""
    if not folder.is_dir():
        return "a file"
    return next((path.name for path in folder.iterdir() if not _OF_A_DATASET.fullmatch(path.name)), None)


def _table(rows: list[dict[str, Any]], file: Path) -> Any:
    """The rows as a table, each of whose columns has values of one kind.

    Raises:
        DataError: They have not.
    """
    import pyarrow

    for column in ("prompt", "chosen", "rejected"):
        texts = sum(isinstance(row.get(column), str) for row in rows)
        chats = sum(isinstance(row.get(column), list) for row in rows)
        if texts and chats:
            raise DataError(
                f"{file}: of {len(rows):,} rows {texts:,} have a {column} that is plain text and {chats:,} one of chat "
                "messages, which a table cannot hold in one column: export to a .jsonl file"
            )
    try:
        return pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{file}: messages with values of several kinds, which a table cannot hold in one column: export to a "
            f".jsonl file ({cut(str(error))})"
        ) from error


def write_parquet(rows: list[dict[str, Any]], file: Path) -> None:
    """Write rows as a Parquet file.

    Raises:
        DataError: A column has values of several kinds.
    """
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(_table(rows, file), sink)
    write_file(file, sink.getvalue().to_pybytes())


def write_dataset(rows: list[dict[str, Any]], folder: Path, *, replaces: bool = False) -> None:
    """Write rows as `datasets.Dataset.save_to_disk` does: an Arrow stream, and two small files about it.

    Args:
        rows: What to write.
        folder: Where to.
        replaces: Whether a data set that is there is replaced; a folder of anything else never is.

    Raises:
        DataError: A column has values of several kinds, or the folder holds something else.
    """
    import pyarrow
    import pyarrow.ipc

    table = _table(rows, folder)
    if replaces and folder.exists() and (strange := _strange_in(folder)):
        raise DataError(
            f"{folder}: holds {strange}, which no data set has; it is not replaced, choose another name"
        )
    name = "data-00000-of-00001.arrow"
    state = {
        "_data_files": [{"filename": name}],
        "_fingerprint": "klimb",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    with whole_folder(folder, replaces=replaces) as unfinished:
        with pyarrow.ipc.new_stream(str(unfinished / name), table.schema) as stream:
            stream.write_table(table)
        (unfinished / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        (unfinished / "dataset_info.json").write_text("{}\n", encoding="utf-8")
