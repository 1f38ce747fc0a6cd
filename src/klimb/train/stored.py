"""Rows of a file by number, read when they are asked for: what is kept of each is where it stands."""

import contextlib
import os
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from klimb.errors import DataError
from klimb.lines import read_header, read_row_at
from klimb.rows import Row, is_text, read_rows

_NOTED = 256  # rows from one whose line is noted to the next
_IN_MEMORY = 64 << 20  # bytes of a Parquet file's values up to which they are kept in memory


@runtime_checkable
class StoredRows(Protocol):
    """Rows of a file that stay in the file."""

    def scan(self) -> Iterator[Row]:
        """Give out all rows, and note where they stand; to be run to its end once."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row:
        """Read one of them.

        Raises:
            DataError: The file has been changed since it was scanned.
        """
        ...


def stored_rows(file: Path) -> StoredRows:
    """Make what reads rows of a file by number.

    Args:
        file: As for `klimb.rows.read_rows`.

    Raises:
        DataError: The file is missing, or of another kind.
    """
    return _Lines(file) if is_text(file) else _Batches(file)


class _Unchanged:
    """Notices that a file is another than it was."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._was = self._look()

    def check(self) -> None:
        if self._look() != self._was:
            raise DataError(
                f"{self._file}: was changed after it had been read: put it back as it was, or start again with what it "
                "is now"
            )

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns


class _Lines:
    """Rows of a JSONL or CSV file: 8 bytes each."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._unchanged = _Unchanged(file)
        self._starts, self._lines = array("q"), array("q")
        self._header: list[str] | None = None

    def scan(self) -> Iterator[Row]:
        self._header = read_header(self._file)
        for row in read_rows(self._file):
            if len(self._starts) % _NOTED == 0:
                self._lines.append(row.line)
            self._starts.append(row.start)
            yield row

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        self._unchanged.check()
        return read_row_at(self._file, self._starts[index], self._line(index), self._header)

    def _line(self, index: int) -> int:
        """Count from the last row whose line was noted."""
        noted = index // _NOTED
        first = self._starts[noted * _NOTED]
        with self._file.open("rb") as stream:
            stream.seek(first)
            return self._lines[noted] + stream.read(self._starts[index] - first).count(b"\n")


class _Batches:
    """Rows of a Parquet file or of a folder of `datasets`, in batches.

    Those of a folder are mapped into memory as they stand. Parquet has to be unpacked to be read row by row: beyond a
    size into a temporary file, which is gone when the process is, whatever ends it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._unchanged = _Unchanged(file)
        self._batches: list[Any] = []
        self._ends = np.zeros(0, dtype=np.int64)

    def scan(self) -> Iterator[Row]:
        from klimb.batches import rows_of

        batches = self._mapped() if self._file.is_dir() else self._unpacked()
        yield from rows_of(self._file, batches)
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Row:
        from klimb.batches import row_of

        if self._file.is_dir():
            self._unchanged.check()
        place = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[place]
        return row_of(self._file, batch, index - int(self._ends[place]) + batch.num_rows, index)

    def _mapped(self) -> Iterator[Any]:
        from klimb.batches import read_batches

        for batch in read_batches(self._file):
            self._batches.append(batch)
            yield batch

    def _unpacked(self) -> Iterator[Any]:
        from klimb.batches import read_batches

        batches, size = read_batches(self._file), 0
        for batch in batches:
            size += batch.nbytes
            self._batches.append(batch)
            yield batch
            if size > _IN_MEMORY:
                yield from self._spooled(batches)

    def _spooled(self, rest: Iterator[Any]) -> Iterator[Any]:
        """Move what was read so far into a file, and the rest behind it."""
        import pyarrow

        with _scratch_file() as scratch:
            with (
                pyarrow.OSFile(scratch, "wb") as sink,
                pyarrow.ipc.new_stream(sink, self._batches[0].schema) as stream,
            ):
                for batch in self._batches:
                    stream.write_batch(batch)
                self._batches.clear()
                for batch in rest:
                    stream.write_batch(batch)
                    yield batch
            self._batches = list(pyarrow.ipc.open_stream(pyarrow.memory_map(scratch)))


@contextlib.contextmanager
def _scratch_file() -> Iterator[str]:
    """A file that is gone afterwards; what of it is mapped into memory stays until it is let go."""
    descriptor, name = tempfile.mkstemp(prefix="klimb-", suffix=".arrow")
    os.close(descriptor)
    try:
        yield name
    finally:
        Path(name).unlink()
