"""The lock on a SQLite store: a file beside it; the kernel releases the lock whenever the process ends."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from klimb.errors import StoreError
from klimb.io.atomic import make_folder

LIVE = "a live run (klimb train --reward people)"
"""What a run is called that learns from a store while people judge."""


def lock_of(store: Path) -> Path:
    """Where the lock of a store is."""
    return store.with_name(f"{store.name}.lock")


@contextlib.contextmanager
def claimed(store: str | Path, user: str, *, advice: str, is_shared: bool = False) -> Iterator[None]:
    """Keep a store while it is used; a live run has it alone, pages for labelling may share it.

    The lock is of the kernel's (flock): it ends with the process, also where that is killed. Where the file system
    has no locks, or its folder may not be written, nothing is kept. Stores in PostgreSQL are not locked: no live
    run uses one.

    Args:
        store: A file, which need not exist yet, or a URL.
        user: What uses it, for the message that another gets.
        advice: What to do where another has it.
        is_shared: Whether others that share may use it, too.

    Raises:
        StoreError: Another process has it; the message names the store and the process.
    """
    if isinstance(store, str) and "://" in store:
        yield
        return
    file = lock_of(Path(store).expanduser())
    is_new = not file.parent.exists()
    try:
        descriptor = _lock(file, user, advice, is_shared=is_shared)
    except StoreError:
        raise
    except OSError:  # whoever opens the store says what is wrong with its folder
        yield
        return
    try:
        yield
    finally:
        _release(file, descriptor)
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty: something came of it
                file.parent.rmdir()


def _lock(file: Path, user: str, advice: str, *, is_shared: bool) -> int:
    """Take the lock, and write into its file who has it."""
    make_folder(file.parent)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _is_same(file, descriptor):
                _sign(descriptor, user)
                return descriptor
        except BlockingIOError as error:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            store = file.with_name(file.name.removesuffix(".lock"))
            raise StoreError(f"{store}: {holder} is using this store; {advice}") from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another removed the file between the opening and the lock


def _release(file: Path, descriptor: int) -> None:
    """Remove the lock's file unless others share it, and let go."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_same(file, descriptor):
            file.unlink()
    os.close(descriptor)


def _is_same(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int, user: str) -> None:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"user": user, "pid": os.getpid(), "host": socket.gethostname(), "since": now}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _read_holder(descriptor: int) -> str:
    try:
        holder: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return f"{holder['user']}, process {holder['pid']} on {holder['host']}, since {holder['since']},"
    except (ValueError, KeyError, TypeError):
        return "another process"  # it has not signed yet
