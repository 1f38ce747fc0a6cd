"""Files whose content does not match their name: Git LFS pointers, archives, HTML pages."""

from pathlib import Path

from klimb.errors import DataError

_LONGEST = 64
_POINTER = b"version https://git-lfs.github.com/spec/"
_KINDS: tuple[tuple[bytes, str, tuple[str, ...]], ...] = (
    (_POINTER, "a Git LFS pointer, not the file itself: run `git lfs install && git lfs pull` in its folder, or fetch "
     "the data with `hf download --repo-type dataset`", ()),
    (b"\x1f\x8b", "compressed by gzip: add .gz to its name", (".gz",)),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard: add .zst to its name", (".zst",)),
    (b"BZh91AY&SY", "compressed by bzip2: unpack it first", ()),
    (b"\xfd7zXZ\0", "compressed by xz: unpack it first", ()),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook: unpack it, or save the sheet as CSV in UTF-8", ()),
    (b"PAR1\x15", "a Parquet file: name it .parquet", (".parquet",)),
    (b"ARROW1", "an Arrow file: name it .arrow", (".arrow", ".feather")),
    (b"SQLite format 3\0", "an SQLite database: a store of klimb's is named by itself, of others export the rows", ()),
    (b"<!doctype html", "a page in HTML, such as a site shows instead of a file: fetch the file itself", ()),
    (b"<html", "a page in HTML, such as a site shows instead of a file: fetch the file itself", ()),
)  # fmt: skip


def refuse_other_contents(file: Path) -> None:
    """Raise where a file's first bytes show that it is not what its ending says.

    Raises:
        DataError: What it is, and what to do.
    """
    try:
        with file.open("rb") as stream:
            begin = stream.read(_LONGEST)
    except OSError:  # reading it reports the error
        return
    begin = begin.removeprefix(b"\xef\xbb\xbf").lstrip()
    for mark, words, endings in _KINDS:
        found = begin[: len(mark)]
        is_it = found.lower() == mark if mark.startswith(b"<") else found == mark
        if is_it and file.suffix.lower() not in endings:
            raise DataError(f"{file}: is {words}")
