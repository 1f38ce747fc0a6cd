"""A checkpoint: the weights that move and the optimiser's state after so many updates, with their checksums."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from klimb.errors import RunFolderError
from klimb.files import whole_folder

_STATE = "state.json"


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for and not kept.

    Args:
        file: The file; it must not change while this is used.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with safe_open(file, framework="pt") as tensors:
            self._names = dict.fromkeys(tensors.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._file, framework="pt") as tensors:  # anew: it holds on to what it has read
            return tensors.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_checkpoint(path: Path, parts: Mapping[str, dict[str, Tensor]], num_updates: int) -> None:
    """Write a checkpoint as a folder that is there whole or not at all.

    Args:
        path: The folder; it must not exist.
        parts: Tensors by name, for each file's name without its suffix: `weights`, `optimiser`.
        num_updates: How often the weights have been moved.
    """
    with whole_folder(path) as unfinished:
        for part, tensors in parts.items():
            save_file(tensors, unfinished / f"{part}.safetensors")
        checksums = {file.name: _sha256(file) for file in sorted(unfinished.glob("*.safetensors"))}
        state = {"num_updates": num_updates, "sha256": checksums}
        (unfinished / _STATE).write_text(json.dumps(state, indent=2) + "\n")


def open_part(path: Path, part: str, num_updates: int) -> StoredTensors:
    """Open one file of a checkpoint, once it is certain to be what was written.

    Args:
        path: The checkpoint's folder.
        part: The file's name without its suffix: `weights` or `optimiser`.
        num_updates: How often the weights had been moved, as the checkpoint must say too.

    Raises:
        RunFolderError: The checkpoint or a file of it is missing, cut short, altered, or of
            another number of updates.
    """
    if not path.is_dir():
        raise RunFolderError(f"{path}: no such checkpoint; choose one that is in {path.parent}")
    state = _read_state(path / _STATE)
    if state["num_updates"] != num_updates:
        raise RunFolderError(
            f"{path / _STATE}: the checkpoint is of {state['num_updates']} updates, not of {num_updates}; "
            "give the folder its own name back, or choose another checkpoint"
        )
    file = path / f"{part}.safetensors"
    if not file.is_file():
        raise RunFolderError(f"{file}: missing; choose another checkpoint")
    if _sha256(file) != state["sha256"].get(file.name):
        raise RunFolderError(
            f"{file}: cut short or altered since it was written: its SHA-256 is not the one in {_STATE}; "
            "choose another checkpoint"
        )
    return StoredTensors(file)


def _read_state(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise RunFolderError(f"{file}: missing; choose another checkpoint")
    try:
        state = json.loads(file.read_bytes())
    except ValueError as error:
        raise RunFolderError(f"{file}: cut short or altered: {error}; choose another checkpoint") from error
    if not (
        isinstance(state, dict)
        and isinstance(state.get("num_updates"), int)
        and isinstance(state.get("sha256"), dict)
    ):
        raise RunFolderError(f"{file}: altered: expected num_updates and sha256; choose another checkpoint")
    return state


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
