"""SHA-256 of large files, kept in the user's cache, so that weights that stay the same are read once."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from klimb.io.atomic import cache_folder, sha256, write_file

_LARGE = 16 << 20  # bytes from which a file's digest is kept: smaller ones are read in a moment
_SETTLED = 2_000_000_000  # nanoseconds since a file's last change; a younger one may change again within a clock's tick


def cached_sha256(path: Path) -> str:
    """SHA-256 of a file; of a large one the digest is cached by its path, size and times of change.

    A file that has the path, size, modification time and status change time of one that was read before is not read
    again. What this misses: content that changes without the system's noticing, such as a fault of the disk, a write to
    the device beneath the file system, or a file system that keeps no change times. A tool that sets the modification
    time back (`cp -p`, `rsync -t`, `touch -r`) is noticed, because it cannot set the other.

    Raises:
        OSError: The file cannot be read; a cache that cannot be read or written is done without.
    """
    found = path.stat()
    if found.st_size < _LARGE:
        return sha256(path)
    real = str(path.resolve())
    key = [real, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    kept = cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(kept.read_bytes())
        if content["file"] == key:
            return str(content["sha256"])
    digest = sha256(path)
    is_settled = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED
    if is_settled and path.stat() == found:  # nothing was written while it was read
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_file(kept, json.dumps({"file": key, "sha256": digest}))
    return digest
