"""Files that appear whole or not at all, and the folder where klimb caches what it converts."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Why a folder is left unsynced: it is not ours to read, or its file system has no such thing.
_UNSYNCED = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP}
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # as tempfile names what is written aside


def cache_folder() -> Path:
    """Return klimb's cache: `$KLIMB_CACHE`, or `klimb` in the user's cache folder."""
    chosen = os.environ.get("KLIMB_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "klimb"


def write_file(path: Path, content: bytes | str) -> None:
    """Replace `path` by a file of this content; after a crash it is the old file or the new one."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def append_text(path: Path, text: str) -> None:
    """Add text to a file and sync it to the disk."""
    is_new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        _sync_folder(path.parent)


def shorten(path: Path, size: int) -> None:
    """Cut a file after so many bytes, synced to the disk; one that is no longer is left as it is."""
    with path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) > size:
            file.truncate(size)
            os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """SHA-256 of a file, which is read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, synced to the disk; one that exists is left as it is.

    Its name is synced all the same: whoever made it may have been killed before.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync_folder(folder.parent)
    if not missing:
        sync(path)


def sync(path: Path) -> None:
    """Bring a file or folder and its name to the disk, where a program that was killed may not have."""
    real = path.resolve()
    if real.is_dir():
        _sync_folder(real)
    else:
        _sync_file(real)
    _sync_folder(real.parent)


@contextlib.contextmanager
def whole_folder(path: Path, *, replaces: bool = False) -> Iterator[Path]:
    """Yield a folder to fill; on success it becomes `path`, on failure it is removed.

    Every file is synced to the disk before the rename, so a folder under the final name is
    complete whatever the moment of a crash. An existing `path` is an error, or is replaced if asked: there
    is an instant then when neither is there.
    """
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        mask = _umask()
        temporary.chmod(0o777 & ~mask)
        for folder, _, names in os.walk(temporary):
            for name in names:
                file = Path(folder) / name
                file.chmod(0o666 & ~mask)  # some libraries write files that only their owner can read
                _sync_file(file)
            _sync_folder(Path(folder))
        if replaces and path.exists():
            remove_folder(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder, so that it is there whole or not at all whatever the moment of a crash."""
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        path.rename(aside / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _sync_folder(path.parent)


def remove_leftovers(folder: Path, names: re.Pattern[str]) -> None:
    """Remove what a crash left of files and folders that were being written here, or removed.

    Args:
        folder: Where; its subfolders are left alone.
        names: What names of theirs must match as a whole.
    """
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found and names.fullmatch(found[1]):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Bring a folder's names to the disk; where a file system or its rights have no way to, they are left to it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _UNSYNCED:
            raise
