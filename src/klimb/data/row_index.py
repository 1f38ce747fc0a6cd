"""Rows of a file by number: only their offsets are kept in memory, and a row is read when it is needed."""

import contextlib
import io
import os
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from klimb.data.lines import COMPRESSED, Header, open_lines, read_header, read_lines, read_row_at
from klimb.data.rows import Row, kind_of, read_rows
from klimb.errors import DataError

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
        file: As for `klimb.data.rows.read_rows`.

    Raises:
        DataError: The file is missing, or of another kind.
    """
    kind = kind_of(file)
    if kind == "folder":
        from klimb.data.batches import is_arrow
        from klimb.data.folders import files_of

        files = files_of(file)
        return (
            _Batches(file, files)
            if all(map(is_arrow, files))
            else _Parts([stored_rows(part) for part in files])
        )
    if kind == "items":
        return _Items(file)
    return _Lines(file) if kind == "lines" else _Batches(file, [file])


class _Unchanged:
    """Notices that a file changed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._was = self._look()

    def check(self) -> None:
        if self._look() != self._was:
            raise DataError(
                f"{self._file}: changed after it was read: restore it, or start again with the changed file"
            )

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns


class _Lines:
    """Rows of a file of lines: 8 bytes each. A compressed file is decompressed into one that nobody else sees."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._unchanged = _Unchanged(file)
        self._starts, self._lines = array("q"), array("q")
        self._header: Header | None = None
        self._content: io.BufferedIOBase | None = None

    def scan(self) -> Iterator[Row]:
        if self._file.suffix.lower() in COMPRESSED:
            self._content = _decompressed(self._file)
            weakref.finalize(self, self._content.close)
        with self._open() as stream:
            self._header = read_header(self._file, stream)
        with self._open() as stream:
            for row in read_lines(self._file, stream):
                if len(self._starts) % _NOTED == 0:
                    self._lines.append(row.line)
                self._starts.append(row.start)
                yield row

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        self._unchanged.check()
        line = self._line(index)
        with self._open() as stream:
            return read_row_at(self._file, stream, self._starts[index], line, self._header)

    @contextlib.contextmanager
    def _open(self) -> Iterator[io.BufferedIOBase]:
        if self._content is None:
            with self._file.open("rb") as stream:
                yield stream
        else:
            self._content.seek(0)
            yield self._content

    def _line(self, index: int) -> int:
        """Count from the last row whose line was noted."""
        noted = index // _NOTED
        first = self._starts[noted * _NOTED]
        with self._open() as stream:
            stream.seek(first)
            return self._lines[noted] + stream.read(self._starts[index] - first).count(b"\n")


def _decompressed(file: Path) -> io.BufferedIOBase:
    content = tempfile.TemporaryFile(prefix="klimb-")  # noqa: SIM115  kept open as long as its rows are read
    with open_lines(file) as stream:
        shutil.copyfileobj(stream, content)
    return content


class _Items:
    """Rows of a .json file, which are kept in memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rows: list[Row] = []

    def scan(self) -> Iterator[Row]:
        self._rows = list(read_rows(self._file))
        yield from self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


class _Parts:
    """Rows of several files, one file after the other."""

    def __init__(self, parts: list[StoredRows]) -> None:
        self._parts = parts

    def scan(self) -> Iterator[Row]:
        for part in self._parts:
            yield from part.scan()

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: int) -> Row:
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


class _Batches:
    """Rows of Parquet or Arrow files, in batches.

    Those of Arrow files are mapped into memory as they stand. Parquet has to be unpacked to be read row by row: beyond
    a size into a temporary file, which is gone when the process is, whatever ends it.
    """

    def __init__(self, file: Path, files: list[Path]) -> None:
        self._file, self._files = file, files
        self._is_mapped = all(part.suffix.lower() != ".parquet" for part in files)
        self._unchanged = [_Unchanged(part) for part in files]
        self._batches: list[Any] = []
        self._ends = np.zeros(0, dtype=np.int64)

    def scan(self) -> Iterator[Row]:
        from klimb.data.batches import rows_of

        batches = self._mapped() if self._is_mapped else self._unpacked()
        yield from rows_of(self._file, batches)
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Row:
        from klimb.data.batches import row_of

        if self._is_mapped:
            for part in self._unchanged:
                part.check()
        place = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[place]
        return row_of(self._file, batch, index - int(self._ends[place]) + batch.num_rows, index)

    def _read(self) -> Iterator[Any]:
        from klimb.data.batches import read_batches

        for file in self._files:
            yield from read_batches(file)

    def _mapped(self) -> Iterator[Any]:
        for batch in self._read():
            self._batches.append(batch)
            yield batch

    def _unpacked(self) -> Iterator[Any]:
        batches, size = self._read(), 0
        for batch in batches:
            size += batch.nbytes
            self._batches.append(batch)
            yield batch
            if size > _IN_MEMORY:
                yield from self._spooled(batches)

    def _spooled(self, rest: Iterator[Any]) -> Iterator[Any]:
        """Move what was read so far into a file, and the rest behind it."""
        import pyarrow

        schema = self._batches[0].schema
        with _scratch_file() as scratch:
            with (
                pyarrow.OSFile(scratch, "wb") as sink,
                pyarrow.ipc.new_stream(sink, schema) as stream,
            ):
                for batch in self._batches:
                    stream.write_batch(batch)
                self._batches.clear()
                for batch in rest:
                    if not batch.schema.equals(schema):
                        raise DataError(f"{self._file}: its files differ in their columns or column types")
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
