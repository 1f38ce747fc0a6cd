"""Weights as they lie in a folder: the names, dtypes and shapes that safetensors files state in their headers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klimb.errors import ModelNotFoundError

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000  # bytes; what safetensors reads at most
_LFS = b"version https://git-lfs.github.com/spec"
_NARROW = ("F8", "F4", "F6", "I4", "U4")  # beginnings of dtypes that only quantised weights have
_WHOLE = ("I8", "U8", "I32", "U32")  # dtypes that a weight has only where several were packed into one


@dataclass(frozen=True)
class StoredWeight:
    """A tensor of a safetensors file.

    Attributes:
        file: Its file.
        dtype: As safetensors names it, such as BF16.
        shape: Its shape.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_quantised(self) -> bool:
        """Whether no float of 16 bits or more is stored here, and a matrix is."""
        return self.dtype.startswith(_NARROW) or (self.dtype in _WHOLE and len(self.shape) > 1)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a model's folder.

    Raises:
        ModelNotFoundError: It cannot be read, is a pointer of Git LFS, or is no JSON object.
    """
    refuse_pointer(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelNotFoundError(f"{file.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelNotFoundError(f"{file.name} is not text in UTF-8: fetch it again") from error
    except json.JSONDecodeError as error:
        raise ModelNotFoundError(
            f"{file.name} is not JSON (line {error.lineno}, column {error.colno}: {error.msg}): fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise ModelNotFoundError(f"{file.name}: expected a JSON object, got {type(content).__name__}")
    return content


def refuse_pointer(file: Path) -> None:
    """Raise where a file is the pointer that Git leaves in the place of a large file.

    Raises:
        ModelNotFoundError: It is one, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            is_pointer = stream.read(len(_LFS)) == _LFS
    except OSError as error:
        raise ModelNotFoundError(f"{file.name} cannot be read: {error.strerror}") from error
    if is_pointer:
        raise ModelNotFoundError(
            f"{file.name} is a Git LFS pointer, not the file itself: run `git lfs install && git lfs pull` in the "
            "folder, or fetch the model with `hf download`"
        )


def stored_weights(folder: Path) -> dict[str, StoredWeight]:
    """Read the headers of the weights that transformers loads from a folder; no weight is read.

    Returns:
        Each tensor by its name; nothing where the folder has no safetensors in transformers' layout.

    Raises:
        ModelNotFoundError: A file is missing, cut off or no safetensors, or the index names what is not there.
    """
    if (folder / _SINGLE).is_file():
        return read_header(folder / _SINGLE)
    if not (folder / _INDEX).is_file():
        return {}
    places = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelNotFoundError(f"{_INDEX} has no weight_map: fetch it again")
    files = sorted(set(map(str, places.values())))
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise ModelNotFoundError(
            f"{len(missing)} of the {len(files)} files that {_INDEX} names are missing: "
            f"{_some(missing)}: fetch them"
        )
    stored: dict[str, StoredWeight] = {}
    for name in files:
        stored |= read_header(folder / name)
    if lost := [name for name in places if name not in stored]:
        raise ModelNotFoundError(
            f"{_INDEX} names weights that its files do not have: {_some(lost)}: fetch the model again"
        )
    return stored


def read_header(file: Path) -> dict[str, StoredWeight]:
    """Read what a safetensors file holds.

    Raises:
        ModelNotFoundError: It is cut off, or no safetensors.
    """
    refuse_pointer(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ModelNotFoundError(
                f"{file.name} is cut off or not a safetensors file ({size:,} bytes): fetch it again"
            )
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            found = {
                name: StoredWeight(file, entry["dtype"], tuple(entry["shape"]))
                for name, entry in header.items()
            }
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelNotFoundError(f"{file.name} is not a safetensors file: fetch it again") from error
    if size != end:
        raise ModelNotFoundError(
            f"{file.name} is cut off: it has {size:,} bytes and its header says {end:,}: fetch it again"
            if size < end
            else f"{file.name} has {size - end:,} bytes more than its header says: fetch it again"
        )
    return found


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
